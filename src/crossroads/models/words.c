/* Sums of word vectors: finds the words of a text and adds up the rows of their pieces.
 *
 * Words are remembered in a table with open addressing whose probes have a bound, so that nobody who
 * chooses the words can make a look-up slow; what no probe finds is learned again. All of it is
 * called with the interpreter's lock held.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PROBES 16

typedef struct {
    const char *text; /* NULL: free */
    uint32_t length, first, count;
    uint32_t hash;
} Word;

typedef struct {
    Word *words;
    char *text;
    int32_t *rows;
    size_t mask, most, held, text_used, text_room, rows_used, rows_room;
} Words;

void words_free(Words *w)
{
    if (w) {
        free(w->words);
        free(w->text);
        free(w->rows);
        free(w);
    }
}

/* Room for ``most`` words (a power of two), so many bytes of text and so many rows. */
Words *words_new(size_t most, size_t text_room, size_t rows_room)
{
    Words *w = calloc(1, sizeof *w);
    if (!w)
        return NULL;
    w->words = calloc(2 * most, sizeof *w->words);
    w->text = malloc(text_room);
    w->rows = malloc(rows_room * sizeof *w->rows);
    if (!w->words || !w->text || !w->rows) {
        words_free(w);
        return NULL;
    }
    w->mask = 2 * most - 1;
    w->most = most;
    w->text_room = text_room;
    w->rows_room = rows_room;
    return w;
}

static uint32_t hash_of(const char *text, size_t length)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t n = 0; n < length; n++)
        hash = (hash ^ (uint8_t)text[n]) * 0x100000001b3u;
    return (uint32_t)(hash ^ (hash >> 32));
}

/* Remember a word; all others are forgotten where there is no more room. 0 if it has none at all. */
int words_add(Words *w, const char *text, size_t length, const int64_t *rows, size_t count)
{
    if (length > w->text_room || count > w->rows_room)
        return 0;
    if (w->held >= w->most || w->text_used + length > w->text_room ||
        w->rows_used + count > w->rows_room) {
        memset(w->words, 0, (w->mask + 1) * sizeof *w->words);
        w->held = w->text_used = w->rows_used = 0;
    }
    uint32_t hash = hash_of(text, length);
    Word *found = &w->words[hash & w->mask];
    for (size_t n = 0; n < PROBES; n++) {
        Word *probe = &w->words[(hash + n) & w->mask];
        if (!probe->text) {
            found = probe;
            w->held++;
            break;
        }
    }
    found->text = memcpy(w->text + w->text_used, text, length);
    found->length = (uint32_t)length;
    found->first = (uint32_t)w->rows_used;
    found->count = (uint32_t)count;
    found->hash = hash;
    for (size_t n = 0; n < count; n++)
        w->rows[w->rows_used + n] = (int32_t)rows[n];
    w->text_used += length;
    w->rows_used += count;
    return 1;
}

static const Word *find(const Words *w, const char *text, size_t length)
{
    uint32_t hash = hash_of(text, length);
    for (size_t n = 0; n < PROBES; n++) {
        const Word *probe = &w->words[(hash + n) & w->mask];
        if (!probe->text)
            return NULL;
        if (probe->hash == hash && probe->length == length && !memcmp(probe->text, text, length))
            return probe;
    }
    return NULL;
}

/* Add the rows of the words of a text from byte ``at`` on to ``out``, one row after the other.
 *
 * A word begins after one space and holds all further spaces before its first other character; a
 * space is taken to stand before the text. Returns -1 at the end; else the start of a word that is
 * not known, whose end is written to ``end``: make it known, and go on from there.
 */
int64_t words_sum(const Words *w, const char *text, size_t length, size_t at, const float *table,
                  size_t dim, float *restrict out, size_t *end)
{
    while (at <= length) {
        size_t stop = at;
        while (stop < length && text[stop] == ' ')
            stop++;
        while (stop < length && text[stop] != ' ')
            stop++;
        const Word *word = find(w, text + at, stop - at);
        if (!word) {
            *end = stop;
            return (int64_t)at;
        }
        for (size_t n = 0; n < word->count; n++) {
            const float *row = table + (size_t)w->rows[word->first + n] * dim;
            for (size_t d = 0; d < dim; d++)
                out[d] += row[d];
        }
        at = stop + 1;
    }
    return -1;
}
