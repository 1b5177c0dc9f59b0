/* index.h: webdataset's grouping, DALI's text there and back, and every way a text can lie. */
#include "index.h"

#include <inttypes.h>
#include <sys/mman.h>

#include "alloc.h"
#include "guard.h"
#include "tar_maker.h"

static struct maker    maker;
static struct tp_error err;
static char            dump[1 << 16];

/* "key{ext:offset+size,...}" of all samples. */
static const char *dumped(const tp_index *index)
{
    size_t used = 0;

    dump[0] = '\0';
    for (uint64_t i = 0; i < tp_index_count(index); i++) {
        struct tp_sample sample = tp_index_sample(index, i);
        CHECK(strlen(sample.key) == sample.key_size && sample.member_count > 0);
        used += (size_t)sprintf(dump + used, "%s{", sample.key);
        for (uint32_t m = 0; m < sample.member_count; m++)
            used += (size_t)sprintf(dump + used, "%s%s:%" PRIu64 "+%" PRIu64, m ? "," : "",
                                    tp_index_ext(index, sample.members[m].ext),
                                    sample.members[m].offset, sample.members[m].size);
        used += (size_t)sprintf(dump + used, "}");
    }
    return dump;
}

static tp_status scan(tp_index **out)
{
    struct guard         guard = guard_copy(maker.bytes, maker.size);
    struct tp_tar_source source = maker_source(&guard);
    tp_status            st = tp_index_scan_source(out, &source, &err);
    guard_free(&guard);
    CHECK((st == TP_OK) == (*out != NULL));
    return st;
}

static tp_status parse_bytes(tp_index **out, const char *text, size_t size, uint64_t tar_bytes)
{
    struct guard guard = guard_copy(text, size);
    tp_status    st = tp_index_parse(out, guard.bytes, size, tar_bytes, "t.idx", &err);
    guard_free(&guard);
    CHECK((st == TP_OK) == (*out != NULL));
    return st;
}

static tp_status parse(tp_index **out, const char *text)
{
    return parse_bytes(out, text, strlen(text), 10240);
}

/* The text of the index, or "" where it has none. */
static const char *formatted(const tp_index *index)
{
    static char copy[1 << 16];
    char       *text = NULL;
    size_t      size = 0;

    tp_status st = tp_index_format(index, &text, &size, "t.tar", &err);
    CHECK((st == TP_OK) == (text != NULL) && size < sizeof copy);
    if (text)
        memcpy(copy, text, size);
    copy[size] = '\0';
    tp_free(text);
    return copy;
}

static void expect_text(const char *text, const char *wanted)
{
    tp_index *index = NULL;
    if (parse(&index, text) != TP_OK)
        (void)fprintf(stderr, "%s\n", err.message);
    CHECK(index);
    if (strcmp(dumped(index), wanted) != 0)
        (void)fprintf(stderr, "got    %s\nwanted %s\n", dump, wanted);
    CHECK(strcmp(dump, wanted) == 0);
    tp_index_free(index);
}

static void refuse_text(tp_status wanted, const char *text, const char *part)
{
    tp_index *index = NULL;
    tp_status st = parse(&index, text);
    if (st != wanted || !strstr(err.message, part))
        (void)fprintf(stderr, "status %d, %s; wanted %s\n", (int)st, err.message, part);
    CHECK(st == wanted && strstr(err.message, part));
    CHECK(strncmp(err.message, "t.idx: ", 7) == 0 && strstr(err.message, "tarpon index --force"));
}

static void test_split(void)
{
    static const struct {
        const char *name;
        int         key_size; /* -1: none */
    } names[] = {
        {"a.jpg", 1},      {"a.b.c", 1},       {"dir/a.jpg", 5},  {"./a.jpg", 3},
        {"d.ir/a.jpg", 6}, {"README", -1},     {".hidden", -1},   {"", -1},
        {".", -1},         {"a.", 1},          {"a/.hid.jpg", 2}, {"d.d/.hid.jpg", -1},
        {"d.d/e/.x", 6},   {"a.b/c", -1},      {"a.b/", -1},      {"../a.b", 4},
        {"..", -1},        {"/a.b", 2},        {"/.b", 1},        {"//.b", 2},
        {"d./x.y", 4},     {"d./.y", -1},      {"a\nb/c.d", 5},   {"a.\nb/c.d", -1},
        {"a\n.b/c.d", -1}, {"a.b/c\n/d.e", 8}, {"a.b\n", 1},      {"\n.b", 1},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t       key_size = 99;
        struct guard name = guard_copy(names[i].name, strlen(names[i].name));
        bool         found = tp_index_split((char *)name.bytes, name.size, &key_size);
        if (found != (names[i].key_size >= 0))
            (void)fprintf(stderr, "case %zu: %s\n", i, names[i].name);
        CHECK(found == (names[i].key_size >= 0));
        CHECK(!found || key_size == (size_t)names[i].key_size);
        guard_free(&name);
    }
}

static void test_grouping(void)
{
    tp_index *index = NULL;

    maker.size = 0;
    maker_file(&maker, "__meta__/info.json", "skipped");
    maker_file(&maker, "a.JPG", "1");
    maker_file(&maker, "README", "skipped, and no end of the sample");
    maker_header(&maker, '5', "dir.d", 0);
    maker_file(&maker, "a.cls", "2");
    maker_file(&maker, "a.seg.png", "3");
    maker_file(&maker, "dir/a.jpg", "4"); /* the key has the folder in it */
    maker_file(&maker, "a.jpg", "5");     /* not consecutive: another sample */
    maker_file(&maker, "__x__.y", "kept: only whole components are meta");
    maker_file(&maker, "__x.y__", "skipped");
    maker_end(&maker);
    CHECK(scan(&index) == TP_OK);
    CHECK(strcmp(dumped(index), "a{jpg:1536+1,cls:4096+1,seg.png:5120+1}dir/a{jpg:6144+1}"
                                "a{jpg:7168+1}__x__{y:8192+36}") == 0);
    CHECK(tp_index_count(index) == 4 && tp_index_members(index) == 6);
    const struct tp_index_skipped *skipped = tp_index_skipped(index);
    CHECK(skipped->meta == 2 && skipped->keyless == 1);
    CHECK(skipped->members.of[TP_TAR_REGULAR] == 9 && skipped->members.of[TP_TAR_DIRECTORY] == 1);
    CHECK(strcmp(formatted(index), "v1.2 4\nJPG 1536 1 a.JPG cls 4096 1 a.cls seg.png 5120 1 "
                                   "a.seg.png\njpg 6144 1 dir/a.jpg\njpg 7168 1 a.jpg\n"
                                   "y 8192 36 __x__.y\n") == 0);
    CHECK(tp_index_bytes(index) > 6 * sizeof(struct tp_member) && tp_index_bytes(index) < 2000);
    tp_index_free(index);

    maker.size = 0;
    maker_file(&maker, "b.c", "1");
    maker_file(&maker, "a.jpg", "1");
    maker_file(&maker, "a.Jpg", "1");
    CHECK(scan(&index) == TP_ECORRUPT);
    CHECK(
        strstr(err.message, "t.tar at byte 2048: member 'a.Jpg' gives its sample a second 'jpg'"));
    CHECK(err.offset == 2048);
}

static void test_find(void)
{
    tp_index *index = NULL;
    char      name[20];

    maker.size = 0;
    maker_file(&maker, "a.PNG", "1");
    maker_file(&maker, "a.cls", "2");
    maker_file(&maker, "b.jpeg", "3");
    maker_file(&maker, "b.png", "4");
    maker_file(&maker, "c.", "5");
    CHECK(scan(&index) == TP_OK);
    struct tp_sample a = tp_index_sample(index, 0), b = tp_index_sample(index, 1);
    struct tp_sample c = tp_index_sample(index, 2);
    CHECK(tp_index_find(index, &a, "jpg;jpeg;png") == &a.members[0]);
    CHECK(tp_index_find(index, &b, "jpg;jpeg;png") == &b.members[0]);
    CHECK(tp_index_find(index, &b, "png;jpeg") == &b.members[1]);
    CHECK(tp_index_find(index, &b, "JPG;Png") == &b.members[1]);
    CHECK(!tp_index_find(index, &a, "pn;pngg;clsx") && !tp_index_find(index, &a, ""));
    CHECK(tp_index_find(index, &c, "") == &c.members[0]);
    CHECK(a.members[0].ext == b.members[1].ext);
    CHECK(tp_index_name(index, &a, &a.members[0], name, sizeof name) == 5);
    CHECK(memcmp(name, "a.PNG", 5) == 0);
    memset(name, '#', sizeof name);
    for (size_t capacity = 0; capacity < 5; capacity++) {
        CHECK(tp_index_name(index, &a, &a.members[0], name, capacity) == 5);
        CHECK(memcmp(name, "a.PNG", capacity) == 0 && name[capacity] == '#');
    }
    CHECK(tp_index_check(index, &b, &b.members[0], maker.bytes + 2048, "t.tar", NULL) == TP_OK);
    CHECK(tp_index_check(index, &b, &b.members[0], maker.bytes, "t.tar", NULL) == TP_ECORRUPT);
    CHECK(*formatted(index) == '\0' && err.status == TP_EUNSUPPORTED);
    CHECK(strstr(err.message, "'c.' has no extension"));
    tp_index_free(index);
}

/* pax may say otherwise than the header: such members are read, but never written as text. */
static void test_overridden(void)
{
    tp_index *index = NULL;
    char      records[100];

    maker.size = 0;
    maker_pax(&maker, 'x', records, maker_record(records, 0, "size", "3"));
    maker_header(&maker, '0', "a.b", 0);
    maker_payload(&maker, "123", 3);
    CHECK(scan(&index) == TP_OK);
    struct tp_sample sample = tp_index_sample(index, 0);
    CHECK(sample.members[0].size == 3);
    CHECK(tp_index_check(index, &sample, sample.members, maker.bytes + 1024, "t", NULL) == TP_OK);
    CHECK(tp_index_check(index, &sample, sample.members, maker.bytes + 1536, "t", NULL) ==
          TP_ECORRUPT);
    CHECK(*formatted(index) == '\0' && strstr(err.message, "'a.b' has a pax record"));
    tp_index_free(index);
}

static void test_parse(void)
{
    expect_text("v1.2 0\n", "");
    expect_text("v1.2 1\njpg 512 10 a.jpg\n", "a{jpg:512+10}");
    expect_text("v1.2 2\nJPG 512 10 a.JPG cls 1536 1 a.cls\njpg 2560 0 b.jpg\n",
                "a{jpg:512+10,cls:1536+1}b{jpg:2560+0}");
    expect_text("v1.2\t1 \r\n  jpg  512 \t10 a.jpg \r\n\n \n", "a{jpg:512+10}");
    expect_text("v1.2 1\njpg 512 9728 a.jpg\n", "a{jpg:512+9728}"); /* up to the end */
    expect_text("v1.2 1\njpg 10240 0 a.jpg\n", "a{jpg:10240+0}");
    expect_text("v1.2 2\nb 1024 1 b.b\na 512 1 a.a\n", "b{b:1024+1}a{a:512+1}");
    /* what wds2idx makes of names that webdataset skips */
    expect_text("v1.2 4\na 512 1 x.a\nREADME 1536 1 README\nb 2560 1 x.b\nj 3584 1 __m__/i.j\n",
                "x{a:512+1,b:2560+1}");
    /* GNU tar's escapes */
    expect_text("v1.2 1\nj\\\\g 512 1 caf\\303\\251/a\\\\b\\n.j\\\\g\n",
                "caf\xc3\xa9/a\\b\n{j\\g:512+1}");
    expect_text("v1.2 1\nx 512 1 \\q\\4\\400\\77\\.x\n", "\\q\\4\\400\\77\\{x:512+1}");
}

static void test_parse_refusals(void)
{
    refuse_text(TP_EUNSUPPORTED, "v1.1 1\njpg 512 10\n", "v1.1 index");
    refuse_text(TP_ECORRUPT, "", "begins with");
    refuse_text(TP_ECORRUPT, "v1.2", "begins with");
    refuse_text(TP_ECORRUPT, "v1.0 1\n", "line 1: found 'v1.0 1\\x0a'");
    refuse_text(TP_ECORRUPT, "v1.20 1\n", "begins with");
    refuse_text(TP_ECORRUPT, "v1.2 1", "line 1: the file ends");
    refuse_text(TP_ECORRUPT, "v1.2 \n", "number of samples");
    refuse_text(TP_ECORRUPT, "v1.2 x\n", "line 1: found 'x', expected the number of samples");
    refuse_text(TP_ECORRUPT, "v1.2 -1\n", "number of samples");
    refuse_text(TP_ECORRUPT, "v1.2 1 1\n", "number of samples");
    refuse_text(TP_ECORRUPT, "v1.2 99999999999999999999\n", "number of samples");
    refuse_text(TP_ECORRUPT, "v1.2 1\n", "found a count of 1 samples");
    refuse_text(TP_ECORRUPT, "v1.2 9999999999999999999\nj 512 1 a.j\n", "which is 1;");
    refuse_text(TP_ECORRUPT, "v1.2 0\nj 512 1 a.j\n", "more than 0;");
    refuse_text(TP_ECORRUPT, "v1.2 1\nj 512 1 a.j\nj 512 1 b.j\n", "more than 1;");
    refuse_text(TP_ECORRUPT, "v1.2 1\nj 512 1 a.j", "line 2: the file ends");
    refuse_text(TP_ECORRUPT, "v1.2 2\nj 512 1 a.j\n\n", "line 3: found ''");
    refuse_text(TP_ECORRUPT, "v1.2 1\nj 512 1\n", "line 2: found '', expected a member's name");
    refuse_text(TP_ECORRUPT, "v1.2 1\nj 512 1 a.j j\n", "line 2: found ''");
    refuse_text(TP_ECORRUPT, "v1.2 1\nj 0 1 a.j\n", "line 2: found '0', expected a payload's off");
    refuse_text(TP_ECORRUPT, "v1.2 1\nj 513 1 a.j\n", "found '513'");
    refuse_text(TP_ECORRUPT, "v1.2 1\nj -512 1 a.j\n", "found '-512'");
    refuse_text(TP_ECORRUPT, "v1.2 1\nj 512 1x a.j\n", "found '1x', expected a payload's size");
    refuse_text(TP_ECORRUPT, "v1.2 1\nj 512 9729 a.j\n", "within a tar of 10240 bytes");
    refuse_text(TP_ECORRUPT, "v1.2 1\nj 10752 0 a.j\n", "within a tar of 10240 bytes");
    refuse_text(TP_ECORRUPT, "v1.2 1\nj 512 9999999999999999999 a.j\n", "within a tar");
    refuse_text(TP_ECORRUPT, "v1.2 1\nj 512 18446744073709551616 a.j\n", "payload's size");
    refuse_text(TP_ECORRUPT, "v1.2 1\nj 9999999999999999488 1 a.j\n", "within a tar");
    refuse_text(TP_ECORRUPT, "v1.2 1\nJ 512 1 a.j\n", "found 'J', expected the extension");
    refuse_text(TP_ECORRUPT, "v1.2 1\nj 512 1 a.j k 1024 1 b.k\n", "members of one sample");
    refuse_text(TP_ECORRUPT, "v1.2 1\nj 512 1 a\\000.j\n", "without NULs");

    tp_index *index = NULL;
    char      text[] = "v1.2 1\nj 512 1 a.j\n";
    CHECK(parse(&index, "v1.2 1\nj 512 1 a.j J 1024 1 a.J\n") == TP_ECORRUPT);
    CHECK(strstr(err.message, "t.idx at byte 512: member 'a.J' gives its sample a second 'j'"));
    text[sizeof text - 4] = '\0';
    CHECK(parse_bytes(&index, text, sizeof text - 1, 10240) == TP_ECORRUPT);
    CHECK(strstr(err.message, "NUL"));
    text[sizeof text - 4] = '.';
    CHECK(parse_bytes(&index, text, sizeof text - 1, 100) == TP_ECORRUPT);
    CHECK(parse_bytes(&index, text, sizeof text - 1, UINT64_MAX) == TP_OK);
    tp_index_free(index);
}

static void test_long_text_name(void)
{
    static char text[TP_TAR_NAME_MAX + 100];
    tp_index   *index = NULL;

    for (size_t extra = 0; extra < 2; extra++) {
        size_t size = (size_t)sprintf(text, "v1.2 1\nj 512 1 ");
        memset(text + size, '\\', TP_TAR_NAME_MAX - 2 + extra);
        size += TP_TAR_NAME_MAX - 2 + extra;
        size += (size_t)sprintf(text + size, ".j\n");
        CHECK(parse_bytes(&index, text, size, 10240) == (extra ? TP_ECORRUPT : TP_OK));
        if (extra)
            continue;
        CHECK(tp_index_sample(index, 0).key_size == (TP_TAR_NAME_MAX - 1) / 2);
        tp_index_free(index);
    }
    CHECK(strstr(err.message, "at most 65535"));
}

/* A text cut anywhere is refused, but where only trailing blanks are lost. */
static void test_cut_text(void)
{
    static const char text[] = "v1.2 3\njpg 512 10 a.jpg cls 1536 1 a.cls\njpg 2560 7 b.jpg\n"
                               "x 3584 1 c\\\\d.x\n";
    tp_index         *index = NULL;

    for (size_t size = 0; size < sizeof text - 1; size++)
        CHECK(parse_bytes(&index, text, size, 10240) == TP_ECORRUPT);
    CHECK(parse_bytes(&index, text, sizeof text - 1, 10240) == TP_OK);
    CHECK(strcmp(formatted(index), text) == 0); /* there and back, byte for byte */
    tp_index_free(index);
}

static void test_format_refusals(void)
{
    static const char *const names[] = {"a b.c", "a\t.c", "a.c ", "a\n.c"};
    tp_index                *index = NULL;

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        maker.size = 0;
        maker_file(&maker, names[i], "1");
        CHECK(scan(&index) == TP_OK && tp_index_count(index) == 1);
        CHECK(*formatted(index) == '\0' && err.status == TP_EUNSUPPORTED);
        CHECK(strstr(err.message, "has white space in it, which a DALI index cannot express"));
        tp_index_free(index);
    }
    maker.size = 0;
    maker_end(&maker);
    CHECK(scan(&index) == TP_OK && tp_index_count(index) == 0);
    CHECK(strcmp(formatted(index), "v1.2 0\n") == 0);
    tp_index_free(index);
}

/* Thousands of extensions, long and short: the hash grows, spellings share their lower case. */
static void test_many_extensions(void)
{
    static char text[1 << 20];
    tp_index   *index = NULL;
    size_t      size = (size_t)sprintf(text, "v1.2 6000\n");
    char        extension[600], name[700];

    for (unsigned i = 0; i < 6000; i++) {
        size_t width = i % 40 ? 6 : 300; /* now and then longer than any stack buffer */
        (void)snprintf(extension, sizeof extension, "%c%0*u", i % 2 ? 'e' : 'E', (int)width, i / 2);
        size += (size_t)sprintf(text + size, "%s 512 1 k%u.%s\n", extension, i, extension);
    }
    CHECK(parse_bytes(&index, text, size, 10240) == TP_OK && tp_index_count(index) == 6000);
    for (unsigned i = 0; i < 6000; i++) {
        struct tp_sample sample = tp_index_sample(index, i);
        size_t           width = i % 40 ? 6 : 300;
        (void)snprintf(extension, sizeof extension, "e%0*u", (int)width, i / 2);
        CHECK(strcmp(tp_index_ext(index, sample.members[0].ext), extension) == 0);
        CHECK(tp_index_find(index, &sample, extension) == sample.members);
        CHECK(tp_index_name(index, &sample, sample.members, name, sizeof name) ==
              strlen(extension) + 1 + sample.key_size);
        CHECK(name[sample.key_size + 1] == (i % 2 ? 'e' : 'E'));
    }
    tp_index_free(index);
}

static void test_scan_fd(void)
{
    tp_index *index = NULL;
    int       fd = memfd_create("t", MFD_CLOEXEC), pipe_fds[2];

    maker.size = 0;
    maker_file(&maker, "a.b", "1");
    CHECK(fd >= 0 && write(fd, maker.bytes, maker.size) == (ssize_t)maker.size);
    CHECK(tp_index_scan(&index, fd, "t.tar", &err) == TP_OK);
    CHECK(strcmp(dumped(index), "a{b:512+1}") == 0);
    tp_index_free(index);
    CHECK(close(fd) == 0 && pipe(pipe_fds) == 0);
    CHECK(tp_index_scan(&index, fd + 100, "t.tar", &err) == TP_EIO && !index);
    CHECK(tp_index_scan(&index, pipe_fds[0], "t.tar", &err) == TP_EIO && !index);
    CHECK(strstr(err.message, "t.tar: not a regular file"));
    CHECK(close(pipe_fds[0]) == 0 && close(pipe_fds[1]) == 0);
}

int main(void)
{
    test_split();
    test_grouping();
    test_find();
    test_overridden();
    test_parse();
    test_parse_refusals();
    test_long_text_name();
    test_cut_text();
    test_format_refusals();
    test_many_extensions();
    test_scan_fd();
    tp_index_free(NULL);
    CHECK(tp_alloc_live() == 0);
    return 0;
}
