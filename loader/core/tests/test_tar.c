/* tar.h against archives of every flavour but pax: what is visited, what is refused, and what
 * happens when any of them ends early. */
#include "tar.h"

#include <sys/mman.h>

#include "guard.h"
#include "scanned.h"
#include "tar_maker.h"

static void test_v7(void)
{
    fresh();
    maker_header(&maker, '\0', "a.jpg", 3);
    maker_payload(&maker, "xyz", 3);
    maker_header(&maker, '\0', "dir/", 0);
    maker_header(&maker, '\0', "b.txt", 0);
    maker_end(&maker);
    expect("a.jpg:3:x|b.txt:0:-|");
    CHECK(counts.of[TP_TAR_REGULAR] == 2 && counts.of[TP_TAR_DIRECTORY] == 1);
    cut_everywhere();

    /* The sum of signed chars, as some old writers had it. */
    fresh();
    maker_header(&maker, '0', "caf\xe9.txt", 1);
    unsigned sum = (unsigned)strtoul((char *)maker.block + 148, NULL, 8);
    maker_octal(maker.block + 148, 6, sum - 256);
    maker_payload(&maker, "x", 1);
    expect("caf\xe9.txt:1:x|");
}

static void test_ustar(void)
{
    char prefix[156], name[101], wanted[300];

    memset(prefix, 'p', 155);
    memset(name, 'n', 100);
    prefix[155] = name[100] = '\0';
    fresh();
    maker_header(&maker, '0', "x.txt", 5);
    memcpy(maker.block + 345, "some/dir", 8);
    maker_magic(&maker, "ustar\00000");
    maker_payload(&maker, "hello", 5);
    maker_header(&maker, '7', name, 1); /* both fields full: no NUL in either */
    memcpy(maker.block + 345, prefix, 155);
    maker_magic(&maker, "ustar\00000");
    maker_payload(&maker, "7", 1);
    maker_header(&maker, '0', "gnu.txt", 1); /* GNU keeps times where ustar has its prefix */
    memcpy(maker.block + 345, "14713514253", 11);
    maker_magic(&maker, "ustar  ");
    maker_payload(&maker, "g", 1);
    maker_end(&maker);
    (void)snprintf(wanted, sizeof wanted, "some/dir/x.txt:5:h|%s/%s:1:7|gnu.txt:1:g|", prefix,
                   name);
    expect(wanted);
    cut_everywhere();
}

static void test_kinds(void)
{
    fresh();
    for (const char *type = "123456"; *type; type++) {
        maker_header(&maker, *type, "n.x", 700); /* a size that stands for nothing */
        maker_magic(&maker, "ustar\00000");
    }
    maker_header(&maker, 'D', "d.x", 600); /* unknown: its payload is there */
    maker_payload(&maker, seen, 600);
    maker_file(&maker, "a.b", "1");
    expect("a.b:1:1|");
    CHECK(counts.of[TP_TAR_LINK] == 2 && counts.of[TP_TAR_DEVICE] == 2);
    CHECK(counts.of[TP_TAR_DIRECTORY] == 1 && counts.of[TP_TAR_FIFO] == 1);
    CHECK(counts.of[TP_TAR_OTHER] == 1 && counts.of[TP_TAR_REGULAR] == 1);
    cut_everywhere();
}

static void test_gnu_long_names(void)
{
    char name[3000], wanted[3100];

    memset(name, 'd', sizeof name);
    memcpy(name + sizeof name - 5, ".jpg", 5);
    fresh();
    maker_gnu_long(&maker, 'K', "somewhere/else");
    maker_gnu_long(&maker, 'L', name);
    maker_header(&maker, '0', name, 2);
    maker_magic(&maker, "ustar  ");
    maker_payload(&maker, "ok", 2);
    maker_file(&maker, "b.c", "2"); /* the long name was for one member */
    maker_end(&maker);
    (void)snprintf(wanted, sizeof wanted, "%s:2:o|b.c:1:2|", name);
    expect(wanted);
    cut_everywhere();

    fresh();
    maker_gnu_long(&maker, 'L', "a.b");
    refuse(TP_ECORRUPT, "without the member");
    maker_end(&maker);
    refuse(TP_ECORRUPT, "without the member");
}

static void test_longest_name(void)
{
    static char name[TP_TAR_NAME_MAX + 2];

    memset(name, 'q', sizeof name - 1);
    fresh();
    maker_gnu_long(&maker, 'L', name + 1);
    maker_header(&maker, '0', "q", 1);
    maker_payload(&maker, "x", 1);
    CHECK(scan() == TP_OK && strlen(seen) == TP_TAR_NAME_MAX + 5);
    fresh();
    maker_gnu_long(&maker, 'L', name);
    maker_header(&maker, '0', "q", 1);
    refuse(TP_ECORRUPT, "at most 65535");
    fresh(); /* just as long a field, with no NUL to end it */
    maker_header(&maker, 'L', "././@LongLink", TP_TAR_NAME_MAX + 1);
    maker_payload(&maker, name, TP_TAR_NAME_MAX + 1);
    maker_header(&maker, '0', "q", 0);
    refuse(TP_ECORRUPT, "65535");

    static char records[TP_TAR_NAME_MAX + 64];
    fresh();
    maker_pax(&maker, 'x', records, maker_record(records, 0, "path", name));
    maker_file(&maker, "q", "");
    refuse(TP_ECORRUPT, "at most 65535");
    fresh();
    maker_pax(&maker, 'x', records, maker_record(records, 0, "path", name + 1));
    maker_file(&maker, "q", "");
    CHECK(scan() == TP_OK && strlen(seen) == TP_TAR_NAME_MAX + 5);
}

static void test_base256(void)
{
    uint8_t *field;

    fresh();
    maker_header(&maker, '0', "a.b", 0);
    field = maker.block + 124;
    memset(field, 0, 12);
    field[0] = 0x80;
    field[11] = 3;
    maker_seal(&maker);
    maker_payload(&maker, "xyz", 3);
    maker_end(&maker);
    expect("a.b:3:x|");
    cut_everywhere();

    static const struct {
        uint8_t     bytes[12];
        const char *part;
    } absurd[] = {
        {{0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255}, "cut off"}, /* 2^63 - 1 */
        {{0x80, 0, 0, 0, 0x80}, "no number"},                                  /* 2^63 */
        {{0x80, 0, 0, 1}, "no number"},                                        /* 2^64 */
        {{0x81}, "no number"},
        {{0xff, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255}, "no number"}, /* -1 */
        {"777777777777", "cut off"},
        {"00000000x00", "no number"},
        {"-0000000001", "no number"},
    };
    for (size_t i = 0; i < sizeof absurd / sizeof *absurd; i++) {
        memcpy(field, absurd[i].bytes, 12);
        maker_seal(&maker);
        refuse(TP_ECORRUPT, absurd[i].part);
        CHECK(err.offset == 0);
    }
    memcpy(field, "          3 ", 12); /* blanks on both sides */
    maker_seal(&maker);
    expect("a.b:3:x|");
    memset(field, ' ', 12);
    maker_seal(&maker);
    CHECK(scan() == TP_ECORRUPT); /* size 0: the payload is no header */
    CHECK(err.offset == 512);
}

static void test_ends(void)
{
    fresh();
    maker_file(&maker, "a.b", "one");
    expect("a.b:3:o|"); /* no end blocks */
    maker.size -= 509;  /* nor the last padding */
    expect("a.b:3:o|");
    maker.size--; /* but every byte of the payload */
    refuse(TP_ECORRUPT, "member 'a.b' of 3 bytes is cut off, the file ends after 2 of them");
    CHECK(err.offset == 0);

    fresh();
    maker_file(&maker, "a.b", "one");
    maker_end(&maker);
    maker_end(&maker); /* tapes are padded with zeros */
    maker.size -= 100;
    expect("a.b:3:o|");
    maker.size += 100;
    maker_file(&maker, "c.d", "two"); /* cat a.tar b.tar */
    maker_end(&maker);
    expect("a.b:3:o|c.d:3:t|");
    maker_payload(&maker, "leftover", 8);
    refuse(TP_ECORRUPT, "after the end of the archive");
    CHECK(strstr(err.message, "`truncate -s 5120`") && err.offset == 5120);
    maker.size -= 504;
    refuse(TP_ECORRUPT, "8 bytes of a header, expected 512");

    fresh();
    maker_end(&maker);
    expect("");
    fresh();
    refuse(TP_ECORRUPT, "empty file");
    maker.size = 100;
    memset(maker.bytes, 0, 100);
    refuse(TP_ECORRUPT, "100 bytes of a header");
}

static void test_wrong_checksum(void)
{
    char part[100];

    fresh();
    maker_file(&maker, "a.b", "one");
    maker_file(&maker, "c.d", "two");
    unsigned long sum = strtoul((char *)maker.block + 148, NULL, 8);
    maker.block[0] = 'd';
    (void)snprintf(part, sizeof part, "t.tar at byte 1024: header checksum %lu, expected %lu", sum,
                   sum + 1);
    refuse(TP_ECORRUPT, part);
    CHECK(err.offset == 1024);
    memcpy(maker.block + 148, "garbage", 7);
    refuse(TP_ECORRUPT, "header checksum 0, expected");
    fresh();
    maker_payload(&maker, "<html>not found</html>", 22);
    refuse(TP_ECORRUPT, "this is not a tar");
}

static void test_compressed(void)
{
    static const struct {
        const char *magic, *command;
        size_t      size;
    } kinds[] = {
        {"\x1f\x8b\x08", "compressed with gzip", 3},
        {"\x1f\x8b\x08", "`gunzip < 't.tar' > 't.tar.plain.tar'`", 3},
        {"BZh91AY", "bunzip2", 7},
        {"\xfd"
         "7zXZ\0",
         "unxz", 6},
        {"\x28\xb5\x2f\xfd", "unzstd", 4},
        {"\x04\x22\x4d\x18", "unlz4", 4},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        fresh();
        maker_payload(&maker, kinds[i].magic, kinds[i].size);
        refuse(TP_EUNSUPPORTED, kinds[i].command);
        maker.size = kinds[i].size; /* smaller than a block */
        refuse(TP_EUNSUPPORTED, kinds[i].command);
    }
    fresh(); /* a name is no magic */
    maker_file(&maker, "BZh.txt", "1");
    expect("BZh.txt:1:1|");
}

static void test_check_member(void)
{
    static const char rebuild[] = "rebuild the index with `tarpon index --force`";
    char              name[300];

    fresh();
    maker_file(&maker, "a.jpg", "xyz");
    struct guard guard = guard_copy(maker.bytes, 512);
    CHECK(tp_tar_check_member(guard.bytes, 512, 3, "a.jpg", 5, "t", &err) == TP_OK);
    CHECK(tp_tar_check_member(guard.bytes, 512, 4, "a.jpg", 5, "t", &err) == TP_ECORRUPT);
    CHECK(strstr(err.message, "index and tar disagree at byte 0: found 'a.jpg' of 3 bytes, the "
                              "index expects 'a.jpg' of 4"));
    CHECK(strstr(err.message, rebuild) && err.offset == 0);
    CHECK(tp_tar_check_member(guard.bytes, 1024, 3, "a.jpeg", 6, "t", &err) == TP_ECORRUPT);
    CHECK(strstr(err.message, "expects 'a.jpeg' of 3") && err.offset == 512);
    CHECK(tp_tar_check_member(guard.bytes, 512, 3, "b.jpg", 5, "t", NULL) == TP_ECORRUPT);
    CHECK(tp_tar_check_member(guard.bytes, 512, 3, "\xc3\xa4.jpg", 6, "t", NULL) == TP_OK);
    CHECK(tp_tar_check_member(guard.bytes, 512, UINT64_C(1) << 33, "a.jpg", 5, "t", NULL) == TP_OK);
    CHECK(tp_tar_check_member(guard.bytes, 512, (UINT64_C(1) << 33) - 1, "a.jpg", 5, "t", NULL) ==
          TP_ECORRUPT);
    memset(name, 'n', sizeof name);
    struct guard longest = guard_copy(name, TP_TAR_HEADER_NAME); /* no more of it is read */
    CHECK(tp_tar_check_member(guard.bytes, 512, 3, name, 100, "t", NULL) == TP_ECORRUPT);
    CHECK(tp_tar_check_member(guard.bytes, 512, 3, name, 101, "t", NULL) == TP_OK);
    CHECK(tp_tar_check_member(guard.bytes, 512, 9, (char *)longest.bytes, 300, "t", NULL) ==
          TP_ECORRUPT);
    guard_free(&longest);
    guard.bytes[156] = '5';
    CHECK(tp_tar_check_member(guard.bytes, 512, 3, "a.jpg", 5, "t", &err) == TP_ECORRUPT);
    CHECK(strstr(err.message, "no header there, checksum") && strstr(err.message, rebuild));
    guard_free(&guard);

    fresh();
    maker_header(&maker, '5', "a.jpg", 3);
    CHECK(tp_tar_check_member(maker.block, 512, 3, "a.jpg", 5, "t", &err) == TP_ECORRUPT);
    CHECK(strstr(err.message, "type flag 0x35, expected a regular file") &&
          strstr(err.message, rebuild));
    memset(maker.bytes, 0, 512);
    CHECK(tp_tar_check_member(maker.bytes, 512, 3, "a.jpg", 5, "t", NULL) == TP_ECORRUPT);
}

static void test_printable(void)
{
    char shown[TP_TAR_PRINTABLE], name[400];

    CHECK(strcmp(tp_tar_printable(shown, "a\x01\x7fz\xc3", 5), "'a\\x01\\x7fz\xc3'") == 0);
    for (size_t size = 0; size < sizeof name; size++) {
        memset(name, size % 2 ? '\x02' : 'b', size);
        CHECK(strlen(tp_tar_printable(shown, name, size)) < TP_TAR_PRINTABLE);
    }
}

static tp_status refusing_visit(void *context, const struct tp_tar_member *member,
                                struct tp_error *error)
{
    (void)context;
    return tp_fail(error, TP_ETIMEOUT, "%s", member->name);
}

static tp_status refusing_read(void *context, uint64_t offset, void *buffer, size_t size,
                               struct tp_error *error)
{
    (void)buffer, (void)size;
    if (offset >= *(uint64_t *)context)
        return tp_fail(error, TP_EIO, "no");
    return maker_read(&(struct guard){.bytes = maker.bytes, .size = maker.size}, offset, buffer,
                      size, error);
}

static void test_callbacks_that_fail(void)
{
    uint64_t limit = 0;

    fresh();
    maker_gnu_long(&maker, 'L', "long.name");
    maker_file(&maker, "a.b", "1");
    for (int i = 0; i < 300; i++)
        maker_file(&maker, "a.b", "1");
    struct tp_tar_source source = {refusing_read, &limit, maker.size, "t.tar"};
    for (; limit < maker.size; limit += 512) {
        tp_status st =
            tp_tar_scan(&source, &scratch, visit,
                        &(struct guard){.bytes = maker.bytes, .size = maker.size}, NULL, &err);
        CHECK(st == TP_EIO || st == TP_OK);
        seen[0] = '\0';
    }
    CHECK(tp_tar_scan(&source, &scratch, refusing_visit, NULL, NULL, &err) == TP_ETIMEOUT);
    CHECK(strcmp(err.message, "long.name") == 0);
    source.size_bytes = UINT64_MAX;
    CHECK(tp_tar_scan(&source, &scratch, visit, NULL, NULL, &err) == TP_ERANGE);
}

static void test_read_fd(void)
{
    int              fd = memfd_create("t", MFD_CLOEXEC);
    struct tp_tar_fd file = {fd, "t.tar"};
    char             text[4] = "";

    CHECK(fd >= 0 && write(fd, "abcdef", 6) == 6);
    CHECK(tp_tar_read_fd(&file, 2, text, 3, &err) == TP_OK && strcmp(text, "cde") == 0);
    CHECK(tp_tar_read_fd(&file, 4, text, 3, &err) == TP_EIO);
    CHECK(strstr(err.message, "t.tar: ended at byte 6"));
    CHECK(close(fd) == 0);
    CHECK(tp_tar_read_fd(&file, 0, text, 3, &err) == TP_EIO);
}

int main(void)
{
    test_v7();
    test_ustar();
    test_kinds();
    test_gnu_long_names();
    test_longest_name();
    test_base256();
    test_ends();
    test_wrong_checksum();
    test_compressed();
    test_check_member();
    test_printable();
    test_callbacks_that_fail();
    test_read_fd();
    return 0;
}
