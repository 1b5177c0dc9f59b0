/* A plain main for a fuzz target: runs it over each file named, and each file of each folder
 * named, so that the committed corpus is an ordinary test in any compiler. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay_file(const char *path)
{
    FILE    *file = fopen(path, "rb");
    uint8_t *bytes = NULL;
    size_t   size = 0, room = 0, got = 1;

    while (file && got) {
        if (size == room) {
            room = room ? room * 2 : 4096;
            uint8_t *grown = realloc(bytes, room);
            if (!grown)
                break;
            bytes = grown;
        }
        got = fread(bytes + size, 1, room - size, file);
        size += got;
    }
    if (!file || ferror(file) || got) {
        perror(path);
        exit(2);
    }
    (void)fclose(file);
    /* Exactly as large as the input, so that a sanitizer sees one byte too many. */
    uint8_t *exact = realloc(bytes, size ? size : 1);
    (void)LLVMFuzzerTestOneInput(exact ? exact : bytes, size);
    free(exact ? exact : bytes);
    return 1;
}

/* Returns how many inputs were run. */
static int replay(const char *path)
{
    struct stat info;
    int         count = 0;

    if (stat(path, &info) == 0 && !S_ISDIR(info.st_mode))
        return replay_file(path);
    DIR *folder = opendir(path);
    if (!folder) {
        perror(path);
        exit(2);
    }
    for (const struct dirent *entry; (entry = readdir(folder));) {
        char inside[4096];
        if (entry->d_name[0] == '.')
            continue;
        if (snprintf(inside, sizeof inside, "%s/%s", path, entry->d_name) < (int)sizeof inside)
            count += replay(inside);
    }
    (void)closedir(folder);
    return count;
}

int main(int argc, char **argv)
{
    int count = 0;

    for (int i = 1; i < argc; i++)
        count += replay(argv[i]);
    (void)printf("%d inputs replayed\n", count);
    return count ? 0 : 2; /* an empty corpus proves nothing */
}
