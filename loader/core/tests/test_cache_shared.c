/* The cache among processes: the limit holds while many write, the longest unused goes first,
 * killed writers leave nothing wrong behind, and a disk that is full or read-only hurts nobody. */
#include "caches.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <time.h>

enum { PIECE = 100 << 10, TAKES = 104 << 10 }; /* with its header, in whole 4 KiB */

static void used_at(const char *path, time_t when)
{
    struct timespec times[2] = {{.tv_sec = when}, {.tv_sec = when}};
    CHECK(utimensat(AT_FDCWD, path, times, 0) == 0);
}

static void test_eviction_order(void)
{
    const char   *folder = new_folder();
    tp_cache     *cache = cache_in(folder, 10 * TAKES);
    tp_cache_key *key = key_of("a", "", 0);
    char          paths[10][PATH_ROOM];
    time_t        now = time(NULL);
    for (uint64_t i = 0; i < 10; i++) {
        char inner[PATH_ROOM];
        CHECK(snprintf(inner, sizeof inner, "%s-one", folder) < PATH_ROOM);
        tp_cache *one = cache_in(inner, UINT64_MAX); /* what is entry i called? */
        put(one, key, i, PIECE, i);
        (void)snprintf(paths[i], PATH_ROOM, "%s%s", folder, look(inner).last + strlen(inner));
        tp_cache_release(one);
        remove_folder(inner);
        put(cache, key, i, PIECE, i);
        used_at(paths[i], now - 10000 + (time_t)(i * 7 % 10) * 100);
    }
    CHECK(look(folder).entries == 10 && stats_of(cache).evicted_bytes == 0);
    CHECK(get(cache, key, 0, PIECE, 0)); /* was the oldest, is the newest */
    struct stat info;
    CHECK(stat(paths[0], &info) == 0 && info.st_mtim.tv_sec >= now);
    used_at(paths[9], now - 40); /* less than a minute: left alone */
    CHECK(get(cache, key, 9, PIECE, 9));
    CHECK(stat(paths[9], &info) == 0 && info.st_mtim.tv_sec == now - 40);

    put(cache, key, 10, PIECE, 10); /* nine may stay: 3 goes (3*7%10 = 1), then 6 */
    for (uint64_t i = 0; i < 11; i++)
        CHECK(tp_cache_has(cache, key, i, PIECE) == (i != 3));
    put(cache, key, 11, PIECE, 11);
    for (uint64_t i = 0; i < 12; i++)
        CHECK(tp_cache_has(cache, key, i, PIECE) == (i != 3 && i != 6));
    CHECK(stats_of(cache).evicted_bytes == 2 * TAKES && look(folder).entries == 10);

    put(cache, key, 12, 10 * TAKES, 12); /* larger than all there may be: nothing goes for it */
    CHECK(look(folder).entries == 10);
    put(cache, key, 12, 5 * TAKES, 12);
    CHECK(get(cache, key, 12, 5 * TAKES, 12) && look(folder).blocks <= 10 * TAKES);

    char name[PATH_ROOM]; /* somebody's file among ours stays */
    CHECK(snprintf(name, sizeof name, "%.*s/notes", (int)strlen(folder) + 3, paths[0]) < PATH_ROOM);
    CHECK(close(open(name, O_CREAT | O_WRONLY, 0600)) == 0);
    used_at(name, 1000);
    for (uint64_t i = 20; i < 40; i++)
        put(cache, key, i, PIECE, i);
    CHECK(stat(name, &info) == 0 && get(cache, key, 39, PIECE, 39));
    tp_cache_key_free(key);
    tp_cache_release(cache);
    remove_folder(folder);
    CHECK(tp_alloc_live() == 0);
}

/* A number that says too much, after crashes, does not keep anything out; nor do dead temporaries.
 */
static void test_recovers(void)
{
    char          path[PATH_ROOM];
    const char   *folder = new_folder();
    tp_cache     *cache = cache_in(folder, 10 * TAKES);
    tp_cache_key *key = key_of("a", "", 0);
    CHECK(snprintf(path, sizeof path, "%s/tarpon-cache-1", folder) < PATH_ROOM);
    int      fd = open(path, O_RDWR);
    uint64_t much = UINT64_MAX / 2;
    CHECK(fd >= 0 && pwrite(fd, &much, sizeof much, 64) == 8);
    for (uint64_t i = 0; i < 9; i++)
        put(cache, key, i, PIECE, i);
    CHECK(look(folder).entries == 9 && stats_of(cache).evicted_bytes == 0);
    uint64_t taken;
    CHECK(pread(fd, &taken, sizeof taken, 64) == 8 && taken == 9 * TAKES);

    CHECK(snprintf(path, sizeof path, "%s/tmp/%x-dead", folder, 5 * TAKES) < PATH_ROOM);
    CHECK(close(open(path, O_CREAT | O_WRONLY, 0600)) == 0);
    for (uint64_t i = 20; i < 23; i++) /* it may still become that large: room is kept for it */
        put(cache, key, i, PIECE, i);
    CHECK(look(folder).entries <= 5 && look(folder).temporaries == 1);
    used_at(path, time(NULL) - 3700);
    for (uint64_t i = 30; i < 40; i++)
        put(cache, key, i, PIECE, i);
    CHECK(look(folder).entries >= 8 && look(folder).temporaries == 0);

    CHECK(close(open(path, O_CREAT | O_WRONLY, 0600)) == 0);
    used_at(path, time(NULL) - 3700);
    tp_cache_release(cache_in(folder, UINT64_MAX)); /* without a limit, whoever opens it looks */
    CHECK(look(folder).temporaries == 0);

    /* The machine restarted, and the number is older than the files. */
    uint64_t none[2] = {0, 0};
    CHECK(pwrite(fd, none, sizeof none, 64) == 16);
    tp_cache_release(cache_in(folder, 10 * TAKES));
    CHECK(pread(fd, &taken, sizeof taken, 64) == 8 && taken == look(folder).entries * TAKES);
    CHECK(close(fd) == 0);
    tp_cache_key_free(key);
    tp_cache_release(cache);
    remove_folder(folder);
}

static uint64_t next(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407;
    return *state >> 33;
}

static size_t size_of(uint64_t i)
{
    return 1000 + i * 7919 % (200 << 10);
}

/* Put and read what is drawn, `turns` times; all that is read is right. */
static void use(tp_cache *cache, uint64_t seed, unsigned turns)
{
    tp_cache_key *key = key_of("shared", "", 0);
    for (unsigned turn = 0; turn < turns; turn++) {
        uint64_t i = next(&seed) % 60;
        if (!get(cache, key, i, size_of(i), i))
            put(cache, key, i, size_of(i), i);
    }
    tp_cache_key_free(key);
}

enum { PROCESSES = 4, MOST = 2 << 20 };

/* false: it has ended, and well. */
static bool stop(pid_t *child)
{
    int status;
    if (*child == 0)
        return false;
    CHECK(kill(*child, SIGSTOP) == 0 && waitpid(*child, &status, WUNTRACED) == *child);
    if (WIFSTOPPED(status))
        return true;
    CHECK(status == 0);
    *child = 0;
    return false;
}

static void test_limit_of_many(void)
{
    const char *folder = new_folder();
    tp_cache   *inherited = cache_in(folder, MOST);
    pid_t       child[PROCESSES];
    for (unsigned i = 0; i < PROCESSES; i++) {
        child[i] = fork();
        CHECK(child[i] >= 0);
        if (child[i] == 0) {
            tp_cache *cache = i % 2 ? inherited : cache_in(folder, MOST);
            use(cache, i, 300);
            struct tp_cache_stats stats = stats_of(cache);
            CHECK(stats.damaged == 0 && stats.hits > 0 && stats.written_bytes > 0);
            char message[600];
            bool trouble = tp_cache_trouble(cache, message, sizeof message);
            if (trouble)
                (void)fprintf(stderr, "%s\n", message);
            _exit(trouble ? 1 : 0);
        }
    }
    unsigned samples = 0;
    uint64_t largest = 0;
    for (bool running = true; running; samples++) {
        /* All stand still meanwhile: one that is renamed would be seen twice. */
        running = false;
        for (unsigned i = 0; i < PROCESSES; i++)
            running = stop(&child[i]) || running;
        struct files files = look(folder);
        uint64_t     bytes = files.blocks > files.bytes ? files.blocks : files.bytes;
        largest = bytes > largest ? bytes : largest;
        for (unsigned i = 0; i < PROCESSES; i++)
            CHECK(child[i] == 0 || kill(child[i], SIGCONT) == 0);
        (void)usleep(samples % 7 * 500);
    }
    CHECK(samples > 20 && largest > MOST / 2);
    CHECK(largest <= MOST);
    tp_cache_release(inherited);
    remove_folder(folder);
}

static void *use_in_thread(void *cache)
{
    use(cache, (uint64_t)pthread_self(), 150);
    return NULL;
}

static void test_threads(void)
{
    const char *folder = new_folder();
    tp_cache   *cache = cache_in(folder, MOST);
    pthread_t   threads[4];
    for (unsigned i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, use_in_thread, cache) == 0);
    for (unsigned i = 0; i < 4; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    struct tp_cache_stats stats = stats_of(cache);
    CHECK(stats.hits + stats.misses == 600 && stats.damaged == 0 && stats.evicted_bytes > 0);
    CHECK(look(folder).blocks <= MOST && look(folder).temporaries == 0);
    tp_cache_release(cache);
    remove_folder(folder);
}

static void test_killed(void)
{
    const char   *folder = new_folder();
    tp_cache_key *key = key_of("shared", "", 0);
    uint64_t      state = (uint64_t)time(NULL);
    size_t        there = 0;
    for (unsigned round = 0; round < 60; round++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            for (uint64_t seed = next(&state) + round;; seed++) {
                tp_cache *cache = cache_in(folder, MOST);
                use(cache, seed, 50);
                tp_cache_release(cache);
            }
        }
        (void)usleep((useconds_t)(next(&state) % 30000));
        int status;
        CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL); /* none ended of itself */
        tp_cache *cache = cache_in(folder, MOST);
        for (uint64_t i = 0; i < 60; i++)
            there += get(cache, key, i, size_of(i), i);
        CHECK(stats_of(cache).damaged == 0 && look(folder).blocks <= MOST);
        tp_cache_release(cache);
    }
    CHECK(there > 100);
    tp_cache_key_free(key);
    remove_folder(folder);
}

static void check_trouble(tp_cache *cache, const char *part)
{
    char message[600] = "";
    CHECK(tp_cache_trouble(cache, message, sizeof message));
    if (!strstr(message, part))
        (void)fprintf(stderr, "%s\n", message);
    CHECK(strstr(message, part) != NULL);
    CHECK(!tp_cache_trouble(cache, message, sizeof message));
}

/* What is there stays readable, what does not fit is not there, nothing half-written stays. */
static void check_full(const char *folder, size_t size, const char *part)
{
    tp_cache     *cache = cache_in(folder, UINT64_MAX);
    tp_cache_key *key = key_of("a", "", 0);
    put(cache, key, 0, PIECE, 1);
    put(cache, key, 1, size, 2);
    CHECK(!get(cache, key, 1, size, 2) && get(cache, key, 0, PIECE, 1));
    check_trouble(cache, part);
    put(cache, key, 2, 1000, 3); /* would fit, but writing rests */
    CHECK(!get(cache, key, 2, 1000, 3));
    struct files files = look(folder);
    CHECK(files.entries == 1 && files.temporaries == 0 && stats_of(cache).damaged == 0);
    tp_cache_key_free(key);
    tp_cache_release(cache);
    cache = cache_in(folder, UINT64_MAX);
    tp_cache_release(cache);
}

static void test_full(void)
{
    const char   *folder = new_folder();
    struct rlimit old, little = {0};
    CHECK(signal(SIGXFSZ, SIG_IGN) != SIG_ERR && getrlimit(RLIMIT_FSIZE, &old) == 0);
    little = (struct rlimit){.rlim_cur = 2 * PIECE, .rlim_max = old.rlim_max};
    CHECK(setrlimit(RLIMIT_FSIZE, &little) == 0);
    check_full(folder, 3 * PIECE, "File too large; the cache takes in nothing new");
    CHECK(setrlimit(RLIMIT_FSIZE, &old) == 0);
    remove_folder(folder);

    folder = new_folder();
    if (mount("none", folder, "tmpfs", 0, "size=1m,mode=755") == 0) {
        check_full(folder, 2 << 20, "No space left on device; the cache takes in nothing new");
        CHECK(umount(folder) == 0);
    } else {
        puts("test_cache_shared: may not mount a disk of its own: a full one is not tried");
    }
    CHECK(rmdir(folder) == 0);
}

/* In a child, as a user whom permissions bind. */
static void in_child(void (*test)(const char *), const char *folder)
{
    int   status;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(geteuid() != 0 || setuid(65534) == 0);
        test(folder);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void refused(const char *folder)
{
    tp_cache *cache;
    CHECK(tp_cache_create(&cache, folder, UINT64_MAX, &err) == TP_EIO && !cache);
    CHECK(strstr(err.message, folder) && strstr(err.message, "Permission denied"));
    char inner[PATH_ROOM];
    CHECK(snprintf(inner, sizeof inner, "%s/inner", folder) < PATH_ROOM);
    CHECK(tp_cache_create(&cache, inner, UINT64_MAX, &err) == TP_EIO && !cache);
}

static tp_cache *before; /* opened while it could be written to */

static void goes_on(const char *folder)
{
    (void)folder;
    tp_cache_key *key = key_of("a", "", 0);
    CHECK(get(before, key, 0, PIECE, 1));
    put(before, key, 1, PIECE, 2);
    CHECK(!get(before, key, 1, PIECE, 2) && get(before, key, 0, PIECE, 1));
    check_trouble(before, "Permission denied; the cache takes in nothing new");
}

static void test_read_only(void)
{
    const char *folder = new_folder();
    CHECK(chmod(folder, 0555) == 0);
    in_child(refused, folder);
    CHECK(chmod(folder, 0755) == 0);
    before = cache_in(folder, UINT64_MAX);
    tp_cache_key *key = key_of("a", "", 0);
    put(before, key, 0, PIECE, 1);
    char inner[PATH_ROOM];
    CHECK(snprintf(inner, sizeof inner, "%s/tmp", folder) < PATH_ROOM);
    CHECK(chmod(inner, 0555) == 0 && chmod(folder, 0555) == 0);
    in_child(goes_on, folder);
    in_child(refused, folder);
    CHECK(chmod(inner, 0755) == 0 && chmod(folder, 0755) == 0);
    tp_cache_key_free(key);
    tp_cache_release(before);
    remove_folder(folder);
    CHECK(tp_alloc_live() == 0);
}

int main(void)
{
    test_eviction_order();
    test_recovers();
    test_limit_of_many();
    test_killed();
    test_full();
    test_read_only();
    test_threads(); /* last: a fork of a process that had threads is another matter */
    puts("test_cache_shared: ok");
    return 0;
}
