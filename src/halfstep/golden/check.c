/* Compare what a device dumped with golden files. C99, for the host:
 *
 *     cc -std=c99 -o check check.c
 *     ./check GOLDEN DUMPS [FILE]
 *
 * GOLDEN holds golden.txt and the golden files, DUMPS a file of the same name, type and order for
 * each site. FILE, such as 003.bin, compares that one alone. Exit codes: 0, all codes are equal; 1,
 * some are not; 2, the golden files themselves cannot be used, or there is no dump at all.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define FIRST_LINE "halfstep golden 1"
#define A_BLOCK 4096 /* bytes compared at once; a multiple of every width */

enum { EQUAL = 0, DIFFERENT = 1, UNUSABLE = 2 };

struct type {
    const char *name;
    size_t width;
    bool is_signed;
    bool is_float;
};

/* One line of golden.txt. */
struct entry {
    char file[64];
    const struct type *type;
    uint64_t samples;
    uint64_t values; /* of one sample */
    int exact;       /* whether a device must give these very values */
    const char *site;
};

static const struct type TYPES[] = {
    {"int8", 1, true, false},   {"uint8", 1, false, false}, {"int16", 2, true, false},
    {"uint16", 2, false, false}, {"int32", 4, true, false},  {"uint32", 4, false, false},
    {"int64", 8, true, false},  {"float32", 4, true, true},
};

static const struct type *type_called(const char *name)
{
    for (size_t i = 0; i < sizeof TYPES / sizeof *TYPES; i++) {
        if (strcmp(TYPES[i].name, name) == 0) {
            return &TYPES[i];
        }
    }
    return NULL;
}

/* A code from its little-endian bytes, whatever the byte order of the host. Floats become integers
 * in the same order, so that neighbours are 1 apart. */
static int64_t code_at(const unsigned char *bytes, const struct type *type)
{
    uint64_t bits = 0;
    for (size_t i = type->width; i-- > 0;) {
        bits = bits << 8 | bytes[i];
    }
    if (type->width == 8) {
        return bits > INT64_MAX ? -(int64_t)~bits - 1 : (int64_t)bits;
    }
    const int64_t code = (int64_t)bits, range = (int64_t)1 << (8 * type->width);
    if (!type->is_signed || code < range / 2) {
        return code;
    }
    return type->is_float ? -(code - range / 2) : code - range;
}

static FILE *open_in(const char *folder, const char *name)
{
    char path[4096];
    const int length = snprintf(path, sizeof path, "%s/%s", folder, name);
    return length < 0 || (size_t)length >= sizeof path ? NULL : fopen(path, "rb");
}

/* How many bytes a file has; it is read from its beginning again. */
static uint64_t size_of(FILE *file)
{
    static unsigned char block[A_BLOCK];
    uint64_t size = 0;
    for (size_t got; (got = fread(block, 1, sizeof block, file)) > 0;) {
        size += got;
    }
    rewind(file);
    return size;
}

static int compare_values(const struct entry *entry, FILE *golden, FILE *dump)
{
    static unsigned char mine[A_BLOCK], theirs[A_BLOCK];
    const size_t width = entry->type->width;
    uint64_t place = 0, wrong = 0, first = 0, largest = 0;
    int64_t expected = 0, found = 0;
    for (size_t got; (got = fread(mine, 1, A_BLOCK, golden)) > 0;) {
        if (fread(theirs, 1, got, dump) != got) {
            printf("%s (%s): the dump cannot be read\n", entry->site, entry->file);
            return DIFFERENT;
        }
        for (size_t at = 0; at < got; at += width, place++) {
            const int64_t a = code_at(mine + at, entry->type);
            const int64_t b = code_at(theirs + at, entry->type);
            const uint64_t distance = a > b ? (uint64_t)a - (uint64_t)b : (uint64_t)b - (uint64_t)a;
            if (distance == 0) {
                continue;
            }
            if (wrong++ == 0) {
                first = place;
                expected = a;
                found = b;
            }
            largest = distance > largest ? distance : largest;
        }
    }
    if (wrong == 0) {
        return EQUAL;
    }
    printf("%s (%s): %" PRIu64 " of %" PRIu64 " values differ, by at most %" PRIu64
           "; the first in sample %" PRIu64 ", value %" PRIu64 " of it: golden %" PRId64
           ", device %" PRId64 "\n",
           entry->site, entry->file, wrong, place, largest, first / entry->values,
           first % entry->values, expected, found);
    return DIFFERENT;
}

static int compare_files(const struct entry *entry, const char *golden, const char *dumps)
{
    const uint64_t size = entry->samples * entry->values * entry->type->width;
    FILE *mine = open_in(golden, entry->file), *theirs = NULL;
    int result = UNUSABLE;
    if (mine == NULL || size_of(mine) != size) {
        fprintf(stderr, "error: %s: the golden file is missing or was changed; export it again\n",
                entry->file);
    } else if ((theirs = open_in(dumps, entry->file)) == NULL) {
        printf("%s (%s): the device dumped no such file\n", entry->site, entry->file);
        result = DIFFERENT;
    } else {
        const uint64_t found = size_of(theirs);
        if (found != size) {
            printf("%s (%s): asked for %" PRIu64 " bytes (%" PRIu64 " samples of %" PRIu64
                   " %s), found %" PRIu64 "\n",
                   entry->site, entry->file, size, entry->samples, entry->values,
                   entry->type->name, found);
            result = DIFFERENT;
        } else {
            result = compare_values(entry, mine, theirs);
        }
    }
    if (mine != NULL) {
        fclose(mine);
    }
    if (theirs != NULL) {
        fclose(theirs);
    }
    return result;
}

/* Read a line of golden.txt, whose end, the name of the site, stays in it. */
static bool parse(char *line, struct entry *entry)
{
    char type[16];
    int end = 0;
    const int found = sscanf(line, "%63s %15s %" SCNu64 " %" SCNu64 " %d %n", entry->file, type,
                             &entry->samples, &entry->values, &entry->exact, &end);
    entry->type = found == 5 ? type_called(type) : NULL;
    entry->site = line + end;
    return entry->type != NULL && entry->samples > 0 && entry->values > 0;
}

/* Whether DUMPS holds any of the files; whether there is a folder, C99 cannot ask. The index is read
 * on from where it was. */
static bool has_dumps(FILE *index, const char *dumps)
{
    static char line[4096];
    const long start = ftell(index);
    FILE *dump = NULL;
    struct entry entry;
    while (dump == NULL && fgets(line, sizeof line, index) != NULL) {
        dump = parse(line, &entry) ? open_in(dumps, entry.file) : NULL;
    }
    fseek(index, start, SEEK_SET);
    if (dump != NULL) {
        fclose(dump);
    }
    return dump != NULL;
}

static int check(FILE *index, const char *golden, const char *dumps, const char *only)
{
    static char line[4096], first[4096];
    long compared = 0, wrong = 0, left_out = 0;
    if (fgets(line, sizeof line, index) == NULL
        || strncmp(line, FIRST_LINE, strlen(FIRST_LINE)) != 0) {
        fprintf(stderr, "error: golden.txt: asked for '" FIRST_LINE "' in its first line\n");
        return UNUSABLE;
    }
    if (!has_dumps(index, dumps)) {
        fprintf(stderr, "error: %s: asked for a folder of the device's dumps, found none of them\n",
                dumps);
        return UNUSABLE;
    }
    while (fgets(line, sizeof line, index) != NULL) {
        struct entry entry;
        line[strcspn(line, "\r\n")] = '\0';
        if (!parse(line, &entry)) {
            fprintf(stderr, "error: golden.txt: it cannot be read at: %s\n", line);
            return UNUSABLE;
        }
        if (only != NULL && strcmp(only, entry.file) != 0) {
            continue;
        }
        if (!entry.exact) {
            left_out++;
            continue;
        }
        compared++;
        const int result = compare_files(&entry, golden, dumps);
        if (result == UNUSABLE) {
            return UNUSABLE;
        }
        if (result == DIFFERENT && wrong++ == 0) {
            strcpy(first, entry.site);
        }
    }
    if (only != NULL && compared + left_out == 0) {
        fprintf(stderr, "error: %s: no such file in golden.txt\n", only);
        return UNUSABLE;
    }
    if (left_out > 0) {
        printf("%ld sites behind float kernels were not compared\n", left_out);
    }
    if (wrong > 0) {
        printf("failed: %ld of %ld sites differ\nfirst divergence: %s\n", wrong, compared, first);
    } else {
        const char *const found = compared == 1 ? "equal: %ld site\n" : "equal: %ld sites\n";
        printf(compared > 0 ? found : "nothing was compared: %ld sites\n", compared);
    }
    return wrong > 0 || compared == 0 ? DIFFERENT : EQUAL;
}

int main(int n, char **arguments)
{
    if (n != 3 && n != 4) {
        fprintf(stderr, "usage: check GOLDEN DUMPS [FILE]\n");
        return UNUSABLE;
    }
    FILE *index = open_in(arguments[1], "golden.txt");
    if (index == NULL) {
        fprintf(stderr, "error: %s/golden.txt: it cannot be read (%s)\n", arguments[1],
                strerror(errno));
        return UNUSABLE;
    }
    const int result = check(index, arguments[1], arguments[2], n == 4 ? arguments[3] : NULL);
    fclose(index);
    return result;
}
