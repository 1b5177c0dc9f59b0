/* tar.h against pax headers, well-formed and not, and the sparse files they announce. */
#include "tar.h"

#include "guard.h"
#include "scanned.h"
#include "tar_maker.h"

static void test_pax(void)
{
    char   records[2048], name[301], wanted[2048];
    size_t size;

    memset(name, 'l', 300);
    memcpy(name + 295, "x.jpg", 6);
    fresh();
    size = maker_record(records, 0, "comment", "of the whole archive");
    maker_pax(&maker, 'g', records, size);
    size = maker_record(records, 0, "mtime", "1.5");
    size = maker_record(records, size, "path", "overridden.below");
    size = maker_record(records, size, "path", name);
    maker_pax(&maker, 'x', records, size);
    maker_file(&maker, "lll", "first");
    maker_pax(&maker, 'x', records, maker_record(records, 0, "path", "gr\xc3\xbc\xc3\x9f/e.txt"));
    maker_pax(&maker, 'x', records, maker_record(records, 0, "size", "4")); /* adds to it */
    maker_header(&maker, '0', "gr??.txt", 0);
    maker_magic(&maker, "ustar\00000");
    maker_payload(&maker, "four", 4);
    maker_pax(&maker, 'x', records, maker_record(records, 0, "path", ""));
    maker_file(&maker, "plain.txt", "p"); /* an empty value is no value */
    maker_end(&maker);
    (void)snprintf(wanted, sizeof wanted, "%s:5:f|gr\xc3\xbc\xc3\x9f/e.txt:4:f|plain.txt:1:p|",
                   name);
    expect(wanted);
    cut_everywhere();
}

static void test_pax_global(void)
{
    char   records[200];
    size_t size;

    fresh();
    size = maker_record(records, 0, "path", "for/all.txt");
    size = maker_record(records, size, "size", "2");
    maker_pax(&maker, 'g', records, size);
    maker_header(&maker, '0', "one", 0);
    maker_payload(&maker, "11", 2);
    size = maker_record(records, 0, "path", "own.txt");
    size = maker_record(records, size, "size", "3");
    maker_pax(&maker, 'x', records, size);
    maker_header(&maker, '0', "two", 0);
    maker_payload(&maker, "222", 3);
    maker_gnu_long(&maker, 'L', "long.txt");
    maker_header(&maker, '0', "three", 0);
    maker_payload(&maker, "33", 2);
    maker_end(&maker);
    maker_file(&maker, "next.txt", "4444"); /* another archive: the first one's g is over */
    maker_end(&maker);
    expect("for/all.txt:2:1|own.txt:3:2|long.txt:2:3|next.txt:4:4|");
    cut_everywhere();
}

static void test_pax_malformed(void)
{
    static const struct {
        const char *records, *part;
    } bad[] = {
        {"path=a\n", "malformed"},
        {"9 path=a", "malformed"},             /* length stops short of the newline */
        {"2000 path=a\n", "malformed"},        /* past the file's end */
        {"99 path=a\n", "malformed"},          /* past the header's end */
        {"5 path=a\n", "malformed"},           /* the newline is elsewhere */
        {"10 path=ab", "malformed"},           /* no newline */
        {"4 a=", "malformed"},                 /* shorter than any record */
        {"7 =abc\n", "malformed"},             /* no keyword */
        {"7 abcd\n", "malformed"},             /* no '=' */
        {"9 path=a\n7 path=a\n", "malformed"}, /* '=' where the newline belongs */
        {"99999999999999999999 a=b\n", "malformed"},
        {"18446744073709551615 a=b\n", "malformed"},
        {" 9 path=a\n", "malformed"},
        {"10 size=a\n", "pax size"},
        {"9 size=a\n", "pax size"},
        {"10 size=-1\n", "pax size"},
        {"28 size=9223372036854775808\n", "pax size"},
        {"29 size=18446744073709551616\n", "pax size"},
        {"28 size=9223372036854775807\n", "cut off"},
        {"24 size=999999999999999\n", "cut off"},
        {"17 size=00000003\n", "cut off"}, /* a fine size, but the file has not that much */
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fresh();
        maker_pax(&maker, 'x', bad[i].records, strlen(bad[i].records));
        maker_header(&maker, '0', "a.b", 1);
        refuse(TP_ECORRUPT, bad[i].part);
    }
    fresh();
    maker_pax(&maker, 'x', "12 path=a\0b\n", 12);
    maker_file(&maker, "a.b", "1");
    refuse(TP_ECORRUPT, "NUL");
    fresh(); /* NULs after the records, as tarfile tolerates */
    maker_pax(&maker, 'x', "12 path=c.d\n\0\0\0junk", 19);
    maker_file(&maker, "a.b", "1");
    expect("c.d:1:1|");
}

/* Records longer than the window are skipped, whatever they hold. */
static void test_pax_huge_record(void)
{
    static char value[200001], records[200200], keyword[2001];
    size_t      size;

    memset(value, 'v', sizeof value - 1);
    memset(keyword, 'k', sizeof keyword - 1);
    size = maker_record(records, 0, "LIBARCHIVE.xattr.user", value);
    fresh();
    size = maker_record(records, size, "path", "found.it");
    maker_pax(&maker, 'x', records, size);
    maker_file(&maker, "a.b", "1");
    size = maker_record(records, 0, keyword, "");
    size = maker_record(records, size, keyword, "value");
    size = maker_record(records, size, "path", "this.too");
    maker_pax(&maker, 'x', records, size);
    maker_file(&maker, "a.b", "2");
    expect("found.it:1:1|this.too:1:2|");
}

static void test_sparse(void)
{
    char   records[300];
    size_t size;

    fresh();
    maker_file(&maker, "a.b", "1");
    maker_header(&maker, 'S', "holes.bin", 0);
    maker_magic(&maker, "ustar  ");
    refuse(TP_EUNSUPPORTED, "'holes.bin' is stored as a GNU sparse file");
    CHECK(err.offset == 1024);

    fresh();
    size = maker_record(records, 0, "GNU.sparse.major", "1");
    size = maker_record(records, size, "GNU.sparse.minor", "0");
    size = maker_record(records, size, "GNU.sparse.name", "real.bin");
    maker_pax(&maker, 'x', records, size);
    maker_file(&maker, "GNUSparseFile.1/real.bin", "0\n");
    refuse(TP_EUNSUPPORTED, "'real.bin' is stored as a GNU sparse file");

    fresh();
    maker_pax(&maker, 'x', records, maker_record(records, 0, "GNU.sparse.map", "0,1"));
    maker_file(&maker, "old\n.bin", "0\n");
    refuse(TP_EUNSUPPORTED, "'old\\x0a.bin' is stored");
}

int main(void)
{
    test_pax();
    test_pax_global();
    test_pax_malformed();
    test_pax_huge_record();
    test_sparse();
    return 0;
}
