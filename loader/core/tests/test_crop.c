/* Crops: boxes are legal, distributed as torchvision's, and functions of their key alone. */
#include "crop.h"
#include "guard.h"

#include <math.h>

static const double usual_scale[2] = {0.08, 1}, usual_ratio[2] = {3.0 / 4, 4.0 / 3};

static void check_legal(uint32_t width, uint32_t height, const double scale[2],
                        const double ratio[2])
{
    for (uint64_t position = 0; position < 300; position++) {
        struct tp_rng rng = tp_rng_make(5, 1, position);
        struct tp_box box;
        bool          flip;
        tp_crop_random(width, height, scale, ratio, 0.5, &rng, &box, &flip);
        CHECK(0 <= box.x0 && box.x0 < box.x1 && box.x1 <= width);
        CHECK(0 <= box.y0 && box.y0 < box.y1 && box.y1 <= height);
        CHECK(box.x0 == floor(box.x0) && box.y0 == floor(box.y0));
        CHECK(box.x1 == floor(box.x1) && box.y1 == floor(box.y1));
    }
}

static void legal_everywhere(void)
{
    const uint32_t sides[] = {1, 2, 3, 17, 500, 65500};
    const double   narrow[2] = {8, 9}, whole[2] = {1, 1}, square[2] = {1, 1};
    const size_t   count = sizeof sides / sizeof *sides;
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < count; j++) {
            check_legal(sides[i], sides[j], usual_scale, usual_ratio);
            check_legal(sides[i], sides[j], whole, narrow);
            check_legal(sides[i], sides[j], whole, square);
        }
    }
}

/* A box of scale 1 and ratio 1 never fits a wide image: the centred square is what is left. */
static void falls_back_to_the_centre(void)
{
    const double  whole[2] = {1, 1}, square[2] = {1, 1};
    struct tp_rng rng = tp_rng_make(1, 2, 3);
    struct tp_box box;
    bool          flip;
    tp_crop_random(401, 100, whole, square, 1, &rng, &box, &flip);
    CHECK(box.x0 == 150 && box.x1 == 250 && box.y0 == 0 && box.y1 == 100);
    CHECK(flip);
    tp_crop_random(100, 401, whole, square, 0, &rng, &box, &flip);
    CHECK(box.x0 == 0 && box.x1 == 100 && box.y0 == 150 && box.y1 == 250);
    CHECK(!flip);
}

/* On a large image area and log-ratio are uniform: means and deviations are known. */
static void distribution(void)
{
    enum { DRAWS = 100000 };
    double area = 0, area2 = 0, aspect = 0, aspect2 = 0, left = 0, flips = 0;
    for (uint64_t position = 0; position < DRAWS; position++) {
        const double  scale[2] = {0.08, 0.5};
        struct tp_rng rng = tp_rng_make(9, 0, position);
        struct tp_box box;
        bool          flip;
        tp_crop_random(4000, 4000, scale, usual_ratio, 0.25, &rng, &box, &flip);
        const double w = box.x1 - box.x0, h = box.y1 - box.y0;
        const double a = w * h / 16e6, r = log(w / h);
        area += a, area2 += a * a, aspect += r, aspect2 += r * r;
        left += box.x0 / (4000 - w), flips += flip;
    }
    CHECK(fabs(area / DRAWS - 0.29) < 0.002);
    CHECK(fabs(sqrt(area2 / DRAWS - pow(area / DRAWS, 2)) - 0.42 / sqrt(12)) < 0.002);
    CHECK(fabs(aspect / DRAWS) < 0.003);
    CHECK(fabs(sqrt(aspect2 / DRAWS) - 2 * log(4.0 / 3) / sqrt(12)) < 0.002);
    CHECK(fabs(left / DRAWS - 0.5) < 0.005);
    CHECK(fabs(flips / DRAWS - 0.25) < 0.006);
}

/* Frozen: whoever changes these changes the pixels of everyone who resumes a run. */
static void golden(void)
{
    struct tp_rng rng = tp_rng_make(17, 3, 1000);
    CHECK(tp_rng_next(&rng) == UINT64_C(0xb19593eb050b2b8a));
    CHECK(tp_rng_next(&rng) == UINT64_C(0x23e4830629bc300d));
    struct tp_box box;
    bool          flip;
    rng = tp_rng_make(17, 3, 1000);
    tp_crop_random(500, 375, usual_scale, usual_ratio, 0.5, &rng, &box, &flip);
    CHECK(box.x0 == 19 && box.y0 == 3 && box.x1 == 363 && box.y1 == 277);
    CHECK(flip == true);
}

static void below_is_fair(void)
{
    struct tp_rng rng = tp_rng_make(0, 0, 0);
    uint32_t      seen[7] = {0};
    for (int i = 0; i < 70000; i++)
        seen[tp_rng_below(&rng, 7)]++;
    for (int i = 0; i < 7; i++)
        CHECK(seen[i] > 9600 && seen[i] < 10400);
    CHECK(tp_rng_below(&rng, 0) == 0 && tp_rng_below(&rng, 1) == 0);
    for (int i = 0; i < 1000; i++)
        CHECK(tp_rng_below(&rng, UINT64_MAX) < UINT64_MAX);
}

/* Neighbouring keys share nothing: bits of the first draw are even coins, pairwise unrelated. */
static void streams_are_unrelated(void)
{
    enum { STREAMS = 20000 };
    int ones[64] = {0}, changed[64] = {0};
    for (uint64_t position = 0; position < STREAMS; position++) {
        struct tp_rng  here = tp_rng_make(1, 1, position), next = tp_rng_make(1, 2, position);
        const uint64_t a = tp_rng_next(&here), b = tp_rng_next(&next);
        for (int bit = 0; bit < 64; bit++) {
            ones[bit] += (int)(a >> bit & 1);
            changed[bit] += (int)((a ^ b) >> bit & 1);
        }
    }
    for (int bit = 0; bit < 64; bit++) {
        CHECK(abs(ones[bit] - STREAMS / 2) < 400);
        CHECK(abs(changed[bit] - STREAMS / 2) < 400);
    }
}

static void centre(void)
{
    struct tp_box box;
    tp_crop_center(500, 375, 224, 256, &box);
    CHECK(box.x1 - box.x0 == 375 * 224.0 / 256 && box.y1 - box.y0 == 375 * 224.0 / 256);
    CHECK(box.x0 + box.x1 == 500 && box.y0 + box.y1 == 375);
    tp_crop_center(300, 401, 64, 0, &box);
    CHECK(box.x0 == 0 && box.x1 == 300 && box.y0 == 50.5 && box.y1 == 350.5);
    tp_crop_center(1, 1, 1, 2, &box);
    CHECK(box.x0 == 0.25 && box.x1 == 0.75);
}

int main(void)
{
    legal_everywhere();
    falls_back_to_the_centre();
    distribution();
    golden();
    below_is_fair();
    streams_are_unrelated();
    centre();
    puts("test_crop: ok");
    return 0;
}
