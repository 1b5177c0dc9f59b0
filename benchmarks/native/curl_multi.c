/* curl_multi.c -- the ceiling of reading over HTTP: libcurl's multi interface, and no more.
 *
 * One thread and `connections` transfers at a time, each a range whose bytes are copied to memory
 * as they come. What a reader of samples does besides is left out: retries, planning, parsing. */
#include <curl/curl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 64, WAIT_MS = 1000 };

struct ranges {
    const char *const *urls;
    const uint64_t    *offsets, *sizes, *places;
    uint64_t           count, next, slot_bytes;
    uint8_t           *memory;
};

struct transfer {
    CURL    *easy;
    uint8_t *to; /* where the range that is under way goes */
    uint64_t size, got;
};

struct client {
    CURLM          *multi;
    struct transfer transfers[MOST];
    int             connections, running;
    struct ranges   ranges;
    uint64_t        bytes;
};

static size_t take(char *from, size_t one, size_t count, void *argument)
{
    struct transfer *self = argument;

    (void)one; /* always 1 */
    if (count > self->size - self->got)
        return 0; /* more than the range has: libcurl fails the transfer */
    memcpy(self->to + self->got, from, count);
    self->got += count;
    return count;
}

/* Begin the next range, if there is one left. Returns 0, or -1. */
static int begin(struct client *client, struct transfer *transfer)
{
    struct ranges *ranges = &client->ranges;
    char           range[64];

    if (ranges->next == ranges->count)
        return 0;
    uint64_t i = ranges->next++;
    uint64_t place = ranges->places ? ranges->places[i]
                                    : (uint64_t)(transfer - client->transfers) * ranges->slot_bytes;
    transfer->to = ranges->memory + place;
    transfer->size = ranges->sizes[i];
    transfer->got = 0;
    (void)snprintf(range, sizeof range, "%llu-%llu", (unsigned long long)ranges->offsets[i],
                   (unsigned long long)(ranges->offsets[i] + ranges->sizes[i] - 1));
    if (curl_easy_setopt(transfer->easy, CURLOPT_URL, ranges->urls[i]) != CURLE_OK ||
        curl_easy_setopt(transfer->easy, CURLOPT_RANGE, range) != CURLE_OK ||
        curl_multi_add_handle(client->multi, transfer->easy) != CURLM_OK)
        return -1;
    client->running++;
    return 0;
}

/* Take what is done out of the multi handle and begin as many. Returns 0, or -1. */
static int take_done(struct client *client)
{
    CURLMsg *message;
    int      left;

    while ((message = curl_multi_info_read(client->multi, &left)) != NULL) {
        struct transfer *transfer = NULL;
        long             status = 0;

        CURL    *easy = message->easy_handle;
        CURLcode result = message->data.result; /* the message dies with the next call */
        (void)curl_easy_getinfo(easy, CURLINFO_PRIVATE, &transfer);
        (void)curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
        if (curl_multi_remove_handle(client->multi, easy) != CURLM_OK || result != CURLE_OK ||
            status != 206 || transfer->got != transfer->size)
            return -1;
        client->running--;
        client->bytes += transfer->got;
        if (begin(client, transfer) < 0)
            return -1;
    }
    return 0;
}

void fetch_close(struct client *client)
{
    for (int i = 0; client && i < client->connections; i++) {
        if (client->multi && client->transfers[i].easy)
            (void)curl_multi_remove_handle(client->multi, client->transfers[i].easy);
        curl_easy_cleanup(client->transfers[i].easy);
    }
    if (client && client->multi)
        (void)curl_multi_cleanup(client->multi);
    free(client);
}

/* A client whose connections live until fetch_close(), or NULL. libcurl reads up to `buffer_bytes`
 * from a socket at once. */
struct client *fetch_open(int connections, long buffer_bytes)
{
    struct client *client = calloc(1, sizeof *client);

    if (!client || connections < 1 || connections > MOST) {
        free(client);
        return NULL;
    }
    client->multi = curl_multi_init();
    client->connections = connections;
    int bad = !client->multi ||
              curl_multi_setopt(client->multi, CURLMOPT_MAXCONNECTS, (long)connections) != CURLM_OK;
    for (int i = 0; i < connections && !bad; i++) {
        struct transfer *transfer = &client->transfers[i];
        CURL            *easy = transfer->easy = curl_easy_init();

        bad = !easy || curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, take) != CURLE_OK ||
              curl_easy_setopt(easy, CURLOPT_WRITEDATA, transfer) != CURLE_OK ||
              curl_easy_setopt(easy, CURLOPT_PRIVATE, transfer) != CURLE_OK ||
              curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, buffer_bytes) != CURLE_OK ||
              curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1) != CURLE_OK;
    }
    if (bad) {
        fetch_close(client);
        return NULL;
    }
    return client;
}

/* Fetch every range once: range i to memory + places[i], or, with `places` NULL, each to the
 * `slot_bytes` of the transfer that happens to be free, which lie one after another. Returns the
 * bytes, or -1; then only close is allowed. */
int64_t fetch_all(struct client *client, const char *const *urls, const uint64_t *offsets,
                  const uint64_t *sizes, uint64_t count, uint8_t *memory, uint64_t slot_bytes,
                  const uint64_t *places)
{
    int going;

    client->ranges = (struct ranges){urls, offsets, sizes, places, count, 0, slot_bytes, memory};
    client->bytes = 0;
    for (int i = 0; i < client->connections; i++)
        if (begin(client, &client->transfers[i]) < 0)
            return -1;
    while (client->running > 0)
        if (curl_multi_perform(client->multi, &going) != CURLM_OK || take_done(client) < 0 ||
            (client->running > 0 &&
             curl_multi_poll(client->multi, NULL, 0, WAIT_MS, NULL) != CURLM_OK))
            return -1;
    return (int64_t)client->bytes;
}
