/* A stand-in for Rockchip's librkllmrt.so, for machines without an NPU and for tests.
 *
 * It has the functions, structs and states of one family of the runtime (rkllm.h is generated from that family's table)
 * and models what surrounds a language model: caches, batches, adapters, templates, times, failures. What it says is a
 * hash of what it has read; npu/simulator/language.py computes the same. A binding that breaks the rules of the API gets
 * a line that begins with "SIMULATOR VIOLATION:" on stderr, and abort().
 *
 * In order: tools, the model file, the language, caches, a handle and its checks, input, a run, the API.
 */
#define _GNU_SOURCE
#include "rkllm.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MEGABYTE (1 << 20)
#define CALLBACK_BYTES (8 * MEGABYTE)
#define DOMAINS 16
#define DOMAIN_MB 4096.0
#define MAX_BATCH 100
#define MAX_TOKENS_IN 0x1000000
#define SPOKEN_BEFORE_END 4
#define POISON 0xDD
#define DEFAULT_PROMPT_CACHE "./prompt_cache.bin"

/* ------------------------------------------------------------------------------------------------------------- tools */
static int log_level;
static _Thread_local bool inside_callback;

__attribute__((constructor)) static void read_log_level(void) {
    const char *level = getenv("RKLLM_LOG_LEVEL"); /* As with the vendor's library: set before it is loaded, or not seen. */
    log_level = level ? atoi(level) : 0;
}

__attribute__((noreturn, format(printf, 1, 2))) static void violation(const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    fflush(stdout);
    fputs("SIMULATOR VIOLATION: ", stderr);
    vfprintf(stderr, format, rest);
    fputc('\n', stderr);
    fflush(stderr);
    abort();
}

/* Information goes to stdout, warnings and errors to stderr; both through C's stdio, whose buffers are its own. */
__attribute__((format(printf, 2, 3))) static void say(char level, const char *format, ...) {
    FILE *stream = level == 'I' ? stdout : stderr;
    va_list rest;
    va_start(rest, format);
    fprintf(stream, "%c rkllm: ", level);
    vfprintf(stream, format, rest);
    fputc('\n', stream);
    va_end(rest);
}

/* An error, and the status that goes with it. */
#define refuse(...) (say('E', __VA_ARGS__), -1)

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) violation("out of memory for %zu bytes", count * size);
    return memory;
}

/* Formatted text, in memory of its own. */
__attribute__((format(printf, 1, 2))) static char *written(const char *format, ...) {
    char *text;
    va_list rest;
    va_start(rest, format);
    if (vasprintf(&text, format, rest) < 0) violation("out of memory for a text");
    va_end(rest);
    return text;
}

static void replace(char **text, const char *by) {
    free(*text);
    *text = strdup(by);
}

static void crash(void) {
    volatile int *volatile nowhere = NULL;
    *nowhere = 1;
}

static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

static uint64_t digest(uint64_t so_far, const void *data, size_t size) {
    const uint8_t *bytes = data;
    for (size_t at = 0; at < size; at++) so_far = (so_far ^ bytes[at]) * 0x100000001B3u;
    return so_far;
}

static uint64_t digest_text(uint64_t so_far, const char *text) {
    return text ? digest(so_far, text, strlen(text) + 1) : digest(so_far, "", 1);
}

#define DIGEST 0xCBF29CE484222325u

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static void wait_until(int64_t deadline) {
    struct timespec when = {.tv_sec = deadline / 1000000000ll, .tv_nsec = deadline % 1000000000ll};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) == EINTR) {}
}

static void *grown(void *array, int count, size_t size) {
    if (count & (count - 1)) return array; /* Room is doubled at each power of two. */
    void *larger = realloc(array, (size_t)(count ? count * 2 : 1) * size);
    if (!larger) violation("out of memory for %d entries", count);
    return larger;
}

/* -------------------------------------------------------------------------------------------------------- model file */
/* Each key a model file may have, and what it is when it is absent. */
#define NUMBERS(X) \
    X(seed, 1) X(vocab_size, 0) X(hidden_size, 64) X(max_context_limit, 4096) X(npu_cores, 3) X(memory_mb, 512) \
    X(thinking, 0) X(full_attention, 1) X(template_parses, 1) \
    X(prefill_tps, 0) X(decode_tps, 0) X(load_ms, 0) X(logits_ms, 0) X(time_scale, 1) X(abort_latency, 0) X(leak, 0) \
    X(init_fail, 0) X(init_segfault, 0) X(out_of_npu_memory, 0) X(error_after, -1) X(segfault_after, -1) \
    X(hang_after, -1) X(exit_after, -1) X(ignore_abort, 0) X(null_text, 0) X(split_utf8, 0) X(last_token_late, 0) \
    X(slow_token, -1) X(slow_token_ms, 0) X(garbage, 0) X(wrong_logits, 0) X(miscount, 0) \
    X(cache_kb, 0) X(cache_mb_s, 0) X(cache_save_fail, 0) X(cache_load_fail, 0) X(cache_spoiled, 0)
#define STRINGS(X) \
    X(name, "simulated") X(platform, "RK3588") X(driver, "0.9.8") X(toolkit, RUNTIME_VERSION) X(dtype, "W8A8")
/* The first value is the one that holds when the file says nothing. */
#define SWITCHES(X) \
    X(callback_thread, "caller own") X(copies_structs, "yes no") X(running_polarity, "one zero") \
    X(state_after_abort, "finish error none") X(error_status, "minus_one zero one") \
    X(return_two_before_1_3, "continue stop drop") X(history_zero_clears, "yes no") X(after_pause, "append compare") \
    X(last_token_cached, "no yes") X(adapter_keeps_cache, "yes no") X(eos_delivered, "yes no") \
    X(null_text_in_waiting_finish, "yes no") X(logits_rows, "all last") X(prefill_counts_cached, "no yes")

typedef struct { uint8_t *bytes; int length; char kind; /* the first letter of its key in the file */ } Piece;
typedef struct { int32_t *ids; int count; } Ids;
typedef struct { Piece question, text; Ids ids; } Known;

typedef struct {
#define NUMBER(name, absent) double name;
#define STRING(name, absent) char *name;
#define SWITCH(name, values) char *name;
    NUMBERS(NUMBER)
    STRINGS(STRING)
    struct { SWITCHES(SWITCH) } open; /* open questions about the vendor's library, each answered one way */
    Piece *pieces, *characters;
    Known *known;
    int n_pieces, n_characters, n_known, n_words;
    int32_t *longer; /* [piece * 256 + byte]: the piece that is longer by that byte, or 0 */
    int32_t *words, end, turn, think, thought;
    Ids assistant, user, system_end;
    uint64_t start;
} Model;

static bool is(const char *value, const char *wanted) { return strcmp(value, wanted) == 0; }

static bool is_listed(const char *values, const char *value) {
    size_t length = strlen(value);
    for (const char *at = values; (at = strstr(at, value)); at += length) {
        if ((at == values || at[-1] == ' ') && (at[length] == ' ' || at[length] == 0)) return length > 0;
    }
    return false;
}

static char *first_of(const char *values) { return strndup(values, strcspn(values, " ")); }

static Piece from_hex(const char *text, char kind) {
    Piece piece = {.bytes = allocate(strlen(text) / 2 + 1, 1), .kind = kind};
    for (unsigned byte; sscanf(text + 2 * piece.length, "%2x", &byte) == 1;) piece.bytes[piece.length++] = byte;
    return piece;
}

static bool read_key(Model *model, const char *key, char *value) {
    if (is_listed("byte start word control marker", key)) {
        model->pieces = grown(model->pieces, model->n_pieces, sizeof(Piece));
        return model->pieces[model->n_pieces++] = from_hex(value, key[0]), true;
    }
    if (is(key, "character")) {
        model->characters = grown(model->characters, model->n_characters, sizeof(Piece));
        return model->characters[model->n_characters++] = from_hex(value, 0), true;
    }
    if (is(key, "answer")) {
        char *question = strsep(&value, " ");
        if (!value) return false;
        model->known = grown(model->known, model->n_known, sizeof(Known));
        return model->known[model->n_known++] = (Known){from_hex(question, 0), from_hex(value, 0), {0}}, true;
    }
    char *rest;
#define READ_NUMBER(name, absent) \
    if (is(key, #name)) return model->name = strtod(value, &rest), rest != value && *rest == 0;
#define READ_STRING(name, absent) \
    if (is(key, #name)) return replace(&model->name, value), true;
#define READ_SWITCH(name, values) \
    if (is(key, "switch." #name)) return replace(&model->open.name, value), is_listed(values, value);
    NUMBERS(READ_NUMBER)
    STRINGS(READ_STRING)
    SWITCHES(READ_SWITCH)
    return false;
}

static Ids tokenize(const Model *model, const char *text, size_t length);

static int32_t find_piece(const Model *model, const char *text) {
    for (int id = 0; id < model->n_pieces; id++) {
        const Piece *piece = &model->pieces[id];
        if ((size_t)piece->length == strlen(text) && memcmp(piece->bytes, text, strlen(text)) == 0) return id;
    }
    return -1;
}

static bool index_pieces(Model *model) {
    model->longer = allocate((size_t)model->n_pieces * 256, sizeof(int32_t));
    model->words = allocate(model->n_pieces, sizeof(int32_t));
    for (int id = 0; id < model->n_pieces; id++) {
        const Piece *piece = &model->pieces[id];
        if (id < 256 && (piece->kind != 'b' || piece->length != 1 || piece->bytes[0] != id)) return false;
        if (piece->kind == 'w') model->words[model->n_words++] = id;
        if (piece->kind != 'w' && piece->kind != 's') continue;
        int parent = piece->bytes[0];
        for (int at = 1; at + 1 < piece->length; at++) parent = model->longer[parent * 256 + piece->bytes[at]];
        model->longer[parent * 256 + piece->bytes[piece->length - 1]] = id;
    }
    model->end = find_piece(model, "<|im_end|>");
    model->turn = find_piece(model, "<|im_start|>");
    model->think = find_piece(model, "<think>");
    model->thought = find_piece(model, "</think>");
    model->assistant = tokenize(model, "assistant\n", 10);
    model->user = tokenize(model, "user\n", 5);
    model->start = mix((uint64_t)model->seed);
    for (Known *known = model->known; known < model->known + model->n_known; known++)
        known->ids = tokenize(model, (char *)known->text.bytes, known->text.length);
    return model->n_pieces > 256 && model->n_words && model->n_characters && model->end > 0 && model->turn > 0 &&
           model->think > 0 && model->thought > 0;
}

/* NULL when there is no such file or it is no model; `complaint` then says which. */
static Model *read_model(const char *path, const char **complaint) {
    FILE *file = path ? fopen(path, "r") : NULL;
    *complaint = "failed to open the model file";
    if (!file) return NULL;
    Model *model = allocate(1, sizeof *model);
#define NUMBER_ABSENT(name, absent) model->name = absent;
#define STRING_ABSENT(name, absent) model->name = strdup(absent);
#define SWITCH_ABSENT(name, values) model->open.name = first_of(values);
    NUMBERS(NUMBER_ABSENT)
    STRINGS(STRING_ABSENT)
    SWITCHES(SWITCH_ABSENT)
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    bool good = getline(&line, &room, file) > 0 && is(line, "RKLLM-SIMULATED 1\n");
    *complaint = RUNTIME < 10200 ? "invalid rknn llm model magic" : "invalid rkllm model!";
    while (good && (length = getline(&line, &room, file)) > 0) {
        if (line[length - 1] == '\n') line[length - 1] = 0;
        char *value = strchr(line, ' ');
        if (value) *value++ = 0;
        good = value && read_key(model, line, value);
        if (!good) say('E', "the simulated model's key %s is not known, or its value is not", line);
    }
    free(line);
    fclose(file);
    good = good && index_pieces(model);
    if (model->vocab_size < model->n_pieces) model->vocab_size = model->n_pieces;
    return good ? model : NULL; /* What a failed load leaves behind is small, and its process soon gone. */
}

/* ---------------------------------------------------------------------------------------------------------- language */
static Ids tokenize(const Model *model, const char *text, size_t length) {
    Ids found = {.ids = allocate(length, sizeof(int32_t))};
    for (size_t at = 0; at < length;) {
        int id = (uint8_t)text[at];
        size_t taken = 1;
        for (int added = model->n_pieces - 1; added >= 0 && strchr("cm", model->pieces[added].kind); added--) {
            const Piece *piece = &model->pieces[added];
            if ((size_t)piece->length <= length - at && memcmp(piece->bytes, text + at, piece->length) == 0) {
                id = added;
                taken = piece->length;
            }
        }
        if (text[at] == ' ') {
            int next;
            while (at + taken < length && (next = model->longer[id * 256 + (uint8_t)text[at + taken]])) id = next, taken++;
        }
        found.ids[found.count++] = id;
        at += taken;
    }
    return found;
}

static uint64_t step(uint64_t state, int32_t id, uint64_t voice) {
    return mix(mix(state ^ voice) + 0x9E3779B97F4A7C15u * ((uint64_t)id + 1));
}

/* 16 bits of noise; cheap, because a row of logits takes 150,000 of them. */
static uint32_t noise(uint64_t state, uint32_t place) {
    uint32_t x = (uint32_t)(state >> 32) ^ place * 0x9E3779B1u;
    x = (x ^ x >> 15) * 0x85EBCA6Bu;
    return (x ^ x >> 13) >> 16;
}

static int last_of(const int32_t *ids, int stop, int32_t wanted) {
    while (--stop >= 0 && ids[stop] != wanted) {}
    return stop;
}

static bool begins(const int32_t *ids, int count, Ids with) {
    return count >= with.count && memcmp(ids, with.ids, with.count * sizeof *ids) == 0;
}

/* The next token of a known answer of which `said` has been said; -1 when none is known, or another thing was said. */
static int32_t known_answer(const Model *model, const int32_t *ids, int count, int begun) {
    int turn, assistant = last_of(ids, count, model->turn);
    for (turn = last_of(ids, assistant, model->turn); turn >= 0; turn = last_of(ids, turn, model->turn)) {
        if (begins(ids + turn + 1, count - turn - 1, model->user)) break;
    }
    if (turn < 0) return -1;
    int first = turn + 1 + model->user.count, length = 0;
    uint8_t *text = allocate((size_t)(assistant - first + 1) * 32, 1);
    for (int at = first; at < assistant && ids[at] != model->end; at++) {
        if (ids[at] >= model->n_pieces || model->pieces[ids[at]].kind == 'c') continue;
        memcpy(text + length, model->pieces[ids[at]].bytes, model->pieces[ids[at]].length);
        length += model->pieces[ids[at]].length;
    }
    int32_t next = -1;
    int said = count - begun;
    for (const Known *known = model->known; known < model->known + model->n_known; known++) {
        if (!memmem(text, length, known->question.bytes, known->question.length)) continue;
        if (said <= known->ids.count && memcmp(ids + begun, known->ids.ids, said * sizeof *ids) == 0)
            next = said < known->ids.count ? known->ids.ids[said] : model->end;
        break;
    }
    free(text);
    return next;
}

static bool is_spoken(const Model *model, int32_t id) {
    return id >= 256 ? id < model->n_pieces && model->pieces[id].kind == 'w' : id >= 0x80 || id == '.' || id == ',';
}

typedef struct { int32_t id; bool certain; /* no sampling chooses another */ } Choice;

/* The greedy choice after `count` ids whose hash is `state`. */
static Choice next_token(const Model *model, const int32_t *ids, int count, uint64_t state, bool ignore_eos) {
    if (model->garbage) return (Choice){33 + mix(state ^ 1) % 94, false};
    int turn = last_of(ids, count, model->turn), body = turn + 1 + model->assistant.count, begun = -1;
    bool thinking = false;
    if (turn >= 0 && begins(ids + turn + 1, count - turn - 1, model->assistant)) {
        int closed = last_of(ids, count, model->thought), lines = 0;
        if (closed >= body) {
            while (lines < 2 && closed + 1 + lines < count && ids[closed + 1 + lines] == '\n') lines++;
            if (lines < 2 && closed + 1 + lines == count) return (Choice){'\n', true};
            begun = closed + 1 + lines;
        } else if (body < count && ids[body] == model->think) {
            thinking = true;
        } else if (body == count && model->thinking) {
            return (Choice){model->think, true};
        } else {
            begun = body;
        }
    }
    if (begun >= 0 && model->n_known) {
        int32_t known = known_answer(model, ids, count, begun);
        if (known >= 0 && !(known == model->end && ignore_eos)) return (Choice){known, true};
    }
    for (int length = 3; length >= 1; length--) {
        int fitting[256], n_fitting = 0;
        for (int which = 0; which < model->n_characters && length <= count; which++) {
            const Piece *character = &model->characters[which];
            bool fits = character->length > length;
            for (int at = 0; fits && at < length; at++) fits = ids[count - length + at] == character->bytes[at];
            if (fits) fitting[n_fitting++] = which;
        }
        if (n_fitting)
            return (Choice){model->characters[fitting[mix(state ^ 2) % n_fitting]].bytes[length], true};
    }
    if (thinking && count - body > SPOKEN_BEFORE_END && mix(state ^ 3) % 8 == 0) return (Choice){model->thought, true};
    uint64_t drawn = mix(state ^ 4);
    bool may_end = drawn % 20 == 0 && !thinking && !ignore_eos && count >= SPOKEN_BEFORE_END;
    for (int back = 1; may_end && back <= SPOKEN_BEFORE_END; back++) may_end = is_spoken(model, ids[count - back]);
    if (may_end) return (Choice){model->end, false};
    uint64_t kind = (drawn >> 8) % 16, which = drawn >> 16;
    if (kind == 0) return (Choice){model->characters[which % model->n_characters].bytes[0], false};
    if (kind == 1) return (Choice){".,"[which % 2], false};
    return (Choice){model->words[which % model->n_words], false};
}

static float logit(const Model *model, uint64_t state, int id) {
    float some = noise(state, id);
    if (id < model->n_pieces && model->pieces[id].kind == 'w') return some / 8192;
    return some / 32768 - (id < model->n_pieces ? 10 : 20);
}

typedef struct {
    int32_t top_k;
    float top_p, temperature, repeat_penalty, frequency_penalty, presence_penalty;
    int32_t mirostat;
    float mirostat_tau, mirostat_eta;
} Sampling;

typedef struct { int32_t id; float weight; } Candidate;

static int by_weight(const void *left, const void *right) {
    float difference = ((const Candidate *)right)->weight - ((const Candidate *)left)->weight;
    return difference > 0 ? 1 : difference < 0 ? -1 : ((const Candidate *)left)->id - ((const Candidate *)right)->id;
}

/* Chooses among the words and the greedy choice; `random` is the handle's own generator, and nobody can seed it. */
static int32_t sample(const Model *model, const Sampling *by, const int32_t *ids, int count, uint64_t state, Choice choice,
                      uint64_t *random, float *surprise) {
    if (choice.certain || by->top_k == 1 || by->temperature < 1e-3f) return choice.id;
    Candidate candidates[model->n_words + 1];
    int n = 0;
    for (int word = 0; word < model->n_words; word++) {
        int32_t id = model->words[word];
        if (id != choice.id) candidates[n++] = (Candidate){id, logit(model, state, id)};
    }
    candidates[n++] = (Candidate){choice.id, 10};
    for (int which = 0; which < n; which++) {
        int seen = 0;
        for (int at = count > 64 ? count - 64 : 0; at < count; at++) seen += ids[at] == candidates[which].id;
        float *weight = &candidates[which].weight;
        if (seen) *weight = *weight / by->repeat_penalty - seen * by->frequency_penalty - by->presence_penalty;
    }
    qsort(candidates, n, sizeof *candidates, by_weight);
    if (by->top_k > 0 && by->top_k < n) n = by->top_k;
    float highest = candidates[0].weight, all = 0, kept = 0;
    for (int which = 0; which < n; which++) {
        candidates[which].weight = expf((candidates[which].weight - highest) / by->temperature);
        all += candidates[which].weight;
    }
    int last = 0;
    for (; last < n; last++) {
        kept += candidates[last].weight;
        float bits = -log2f(candidates[last].weight / all);
        if (by->mirostat ? bits > *surprise : kept >= by->top_p * all) break;
    }
    n = last < n ? last + 1 : n;
    *random += 0x9E3779B97F4A7C15u;
    float drawn = (mix(*random) >> 40) * 0x1p-24f * kept;
    int which = 0;
    while (which < n - 1 && (drawn -= candidates[which].weight) >= 0) which++;
    if (by->mirostat) *surprise -= by->mirostat_eta * (-log2f(candidates[which].weight / all) - by->mirostat_tau);
    return candidates[which].id;
}

/* ------------------------------------------------------------------------------------------------------------ caches */
typedef struct {
    int32_t *ids;
    uint64_t *voices; /* the adapter each was read with, 0 for none */
    uint64_t *states; /* hash of everything up to it */
    int length;
} Cache;

static Cache new_cache(int room) {
    return (Cache){allocate(room, sizeof(int32_t)), allocate(room, sizeof(uint64_t)), allocate(room, sizeof(uint64_t)), 0};
}

static void free_cache(Cache *cache) {
    free(cache->ids);
    free(cache->voices);
    free(cache->states);
    *cache = (Cache){0};
}

static void append(const Model *model, Cache *cache, int32_t id, uint64_t voice) {
    uint64_t before = cache->length ? cache->states[cache->length - 1] : model->start;
    cache->ids[cache->length] = id;
    cache->voices[cache->length] = voice;
    cache->states[cache->length++] = step(before, id, voice);
}

/* Forget the tokens from `first` to before `stop`. */
static void cut(const Model *model, Cache *cache, int first, int stop) {
    int length = cache->length;
    cache->length = first;
    for (int at = stop; at < length; at++) append(model, cache, cache->ids[at], cache->voices[at]);
}

static int common(const Cache *cache, const int32_t *ids, int count, const uint64_t *voice) {
    int same = 0;
    for (; same < count && same < cache->length && cache->ids[same] == ids[same]; same++)
        if (voice && cache->voices[same] != *voice) break;
    return same;
}

/* ---------------------------------------------------------------------------------------------- a handle, its checks */
typedef struct Adapter { struct Adapter *next; char *name; uint64_t voice; } Adapter;

typedef struct Handle {
    struct Handle *next;
    bool alive, empty; /* empty: 1.1 says a failed load was good */
    atomic_bool running, aborted;
    _Atomic int64_t aborted_at;
    Model *model;
    RKLLMParam param, *given;
    LLMResultCallback callback;
    INIT_CALLBACK given_callback;
    void *userdata;
    uint64_t given_digest;
    Sampling sampling;
    int context, n_slots, domain;
    Cache *slots, loaded; /* loaded: from a prompt cache file */
    bool has_loaded, history, paused;
    Adapter *adapters;
    int system_tokens;
    char *system, *prefix, *postfix; /* set by the caller, instead of the model's own template */
    char *tools_system, *tools, *tool_tag;
    char *text; /* of the callback under way */
    float *rows, surprise;
    size_t rows_size;
    int64_t resident; /* rows of hidden layers nobody released */
    uint64_t random;
} Handle;

static pthread_mutex_t registry = PTHREAD_MUTEX_INITIALIZER;
static Handle *handles; /* never freed, so that a dead one is known by its address */
static double domain_mb[DOMAINS];

static void forbid_inside(const char *function) {
    if (inside_callback) violation("%s was called from inside a callback; rkllm_abort may be, and is_running", function);
}

static Handle *known_handle(LLMHandle handle, const char *function) {
    pthread_mutex_lock(&registry);
    Handle *found = handles;
    while (found && found != handle) found = found->next;
    pthread_mutex_unlock(&registry);
    if (!found) violation("%s was given a handle that rkllm_init never made", function);
    if (!found->alive) violation("%s was given a handle that is destroyed", function);
    return found;
}

/* For calls nobody may make during a run. */
static Handle *idle_handle(LLMHandle handle, const char *function) {
    forbid_inside(function);
    Handle *found = known_handle(handle, function);
    if (found->running) violation("%s was called while the handle runs", function);
    return found;
}

static uint64_t digest_given(const Handle *handle) {
    uint64_t found = digest_text(digest(DIGEST, handle->given, sizeof *handle->given), handle->given->model_path);
#ifdef HAVE_RKLLMCallback_result_callback
    found = digest(found, handle->given_callback, sizeof *handle->given_callback);
#endif
    return found;
}

/* Where the library copies nothing, what rkllm_init was given must still be there. */
static void check_given(const Handle *handle) {
    if (is(handle->model->open.copies_structs, "no") && digest_given(handle) != handle->given_digest)
        violation("the structs or the path given to rkllm_init were changed or freed while the handle lives");
}

static bool in_range(const char *name, double value, double low, double high) {
    /* A whole number read as a float is a denormal, and a float read as a whole number is above a billion. */
    if (value >= low && value <= high && (value == 0 || fabs(value) > 1e-6)) return true;
    return !refuse("%s is %g, which is not between %g and %g: is the binding made for runtime %s?", name, value, low, high,
                   RUNTIME_VERSION);
}

static bool is_flag(const char *name, const void *field) {
    uint8_t value;
    memcpy(&value, field, 1);
    return in_range(name, value, 0, 1);
}

#define COPY_SAMPLING(from) \
    { (from)->top_k, (from)->top_p, (from)->temperature, (from)->repeat_penalty, (from)->frequency_penalty, \
      (from)->presence_penalty, (from)->mirostat, (from)->mirostat_tau, (from)->mirostat_eta }

static bool check_sampling(const Sampling *given) {
    return in_range("top_k", given->top_k, 0, 1000000) && in_range("top_p", given->top_p, 0, 1) &&
           in_range("temperature", given->temperature, 0, 100) && in_range("repeat_penalty", given->repeat_penalty, 0.01, 100) &&
           in_range("frequency_penalty", given->frequency_penalty, -2, 2) &&
           in_range("presence_penalty", given->presence_penalty, -2, 2) && in_range("mirostat", given->mirostat, 0, 2) &&
           in_range("mirostat_tau", given->mirostat_tau, 0, 100) && in_range("mirostat_eta", given->mirostat_eta, 0, 10);
}

static bool check_extension(const RKLLMExtendParam *given, const Model *model) {
    bool good = in_range("base_domain_id", given->base_domain_id, 0, DOMAINS - 1);
    for (size_t at = 0; good && at < sizeof given->reserved; at++) good = in_range("reserved", given->reserved[at], 0, 0);
#ifdef HAVE_RKLLMExtendParam_n_batch
    if (given->n_batch < 1 || given->n_batch > MAX_BATCH)
        return !refuse("The n_batch must be between 1 and 100, but got %d", given->n_batch);
    good = good && is_flag("use_cross_attn", &given->use_cross_attn);
#endif
#ifdef HAVE_RKLLMExtendParam_embed_flash
    int cpus = given->enabled_cpus_num, mask = given->enabled_cpus_mask, cores = model->npu_cores;
    good = good && is_flag("embed_flash", &given->embed_flash) && in_range("enabled_cpus_num", cpus, 1, 8);
    if (good && cpus < cores) return !refuse("enabled_cpus_num[%d] must not be less than npu_core_num[%d]", cpus, cores);
    if (good && mask && __builtin_popcount(mask) != cpus)
        return !refuse("enabled_cpus_mask[%x] does not have enabled_cpus_num[%d] cores", mask, cpus);
#endif
    (void)model;
    return good;
}

static bool check_param(const RKLLMParam *given, const Model *model) {
    Sampling sampling = COPY_SAMPLING(given);
    if (!check_extension(&given->extend_param, model) || !check_sampling(&sampling) ||
        !in_range("max_context_len", given->max_context_len, 1, MAX_TOKENS_IN) ||
        !in_range("max_new_tokens", given->max_new_tokens, -1, 0x7FFFFFFF) ||
        !is_flag("skip_special_token", &given->skip_special_token) || !is_flag("is_async", &given->is_async))
        return false;
#ifdef HAVE_RKLLMParam_n_keep
    if (!in_range("n_keep", given->n_keep, -1, given->max_context_len)) return false;
#endif
#ifdef HAVE_RKLLMParam_ignore_eos_token
    if (!is_flag("ignore_eos_token", &given->ignore_eos_token)) return false;
#endif
    if (given->max_context_len <= model->max_context_limit) return true;
    return !refuse("max_context[%d] must be less than the model's max_context_limit[%d]", given->max_context_len,
                   (int)model->max_context_limit);
}

/* ----------------------------------------------------------------------------------------------------------- one run */
typedef struct {
    Handle *handle;
    RKLLMInput *inputs;
    RKLLMInferParam *infer;
    void *userdata;
    int status;
    Sampling sampling;
    uint64_t voice;
    bool history, dropped;
    int limit;
    RKLLMResult results[MAX_BATCH];
    int prompt[MAX_BATCH], processed[MAX_BATCH], said[MAX_BATCH];
    char pending[MAX_BATCH][8]; /* bytes of a character that is not yet whole */
    int n_pending[MAX_BATCH];
    int64_t deadline; /* of what is waited for, by the monotonic clock */
    double prefill_ms, generate_ms;
} Run;

enum { CONTINUE, PAUSE, RELEASE };

/* Simulated milliseconds pass; nothing but the end of the wait is seen meanwhile. */
static void pass(Run *run, double ms) {
    run->deadline += (int64_t)(ms * run->handle->model->time_scale * 1e6);
    if (ms > 0) wait_until(run->deadline);
}

static double duration_ms(double count, double per_second) { return per_second > 0 ? count * 1000 / per_second : 0; }

static bool abort_is_due(const Handle *handle) {
    return handle->aborted && now_ns() >= handle->aborted_at + (int64_t)(handle->model->abort_latency * 1e6);
}

static int tell(Run *run, LLMCallState state) {
    Handle *handle = run->handle;
    void *userdata = run->userdata;
    LLMResultCallback callback = handle->callback;
    check_given(handle);
#ifdef HAVE_RKLLMCallback_result_callback
    if (is(handle->model->open.copies_structs, "no")) callback = handle->given_callback->result_callback;
    if (!userdata) userdata = handle->userdata;
#endif
    int answer = CONTINUE;
    inside_callback = true;
#if CALLBACK_ANSWERS
    answer = callback(run->results, userdata, state);
#else
    callback(run->results, userdata, state);
#endif
    inside_callback = false;
    memset(handle->text, POISON, 64 * handle->n_slots - 1); /* What it pointed at is gone, and shows it. */
    memset(run->results, 0, handle->n_slots * sizeof *run->results);
    if (answer < CONTINUE || answer > RELEASE) violation("a callback returned %d", answer);
    if (answer == RELEASE && RUNTIME < 10300) {
        const char *meant = handle->model->open.return_two_before_1_3;
        if (is(meant, "drop")) run->dropped = true;
        answer = is(meant, "stop") ? PAUSE : CONTINUE;
    }
    if (answer == PAUSE && run->history) {
        say('E', "pausing is not supported with keep_history");
        answer = CONTINUE;
    }
    return answer;
}

static void end_in_error(Run *run) {
    const char *status = run->handle->model->open.error_status;
    run->status = is(status, "zero") ? 0 : is(status, "one") ? 1 : -1;
    tell(run, RKLLM_RUN_ERROR);
}

#define fail(run, ...) (say('E', __VA_ARGS__), end_in_error(run))

static double memory_mb(const Handle *handle) {
    return handle->model->memory_mb + handle->resident * handle->model->hidden_size * sizeof(float) / MEGABYTE;
}

/* The last word of a run: figures where the family has them. */
static void finish(Run *run) {
    Handle *handle = run->handle;
    const int *counted = is(handle->model->open.prefill_counts_cached, "yes") ? run->prompt : run->processed;
    for (int slot = 0; slot < handle->n_slots; slot++) {
        RKLLMResult *result = &run->results[slot];
        result->token_id = -1;
        if (is(handle->model->open.null_text_in_waiting_finish, "no")) result->text = "";
#ifdef HAVE_RKLLMResult_perf
        result->perf.prefill_time_ms = run->prefill_ms;
        result->perf.prefill_tokens = counted[slot];
        result->perf.generate_time_ms = run->generate_ms;
        result->perf.generate_tokens = run->said[slot] + (int)handle->model->miscount;
        result->perf.memory_usage_mb = memory_mb(handle);
#endif
    }
    if (log_level >= 1)
        say('I', "prefill %d tokens in %.2f ms, generate %d tokens in %.2f ms, memory %.2f MB", counted[0],
            run->prefill_ms, run->said[0], run->generate_ms, memory_mb(handle));
    tell(run, RKLLM_RUN_FINISH);
}

static void end_aborted(Run *run) {
    const char *state = run->handle->model->open.state_after_abort;
    if (is(state, "finish")) finish(run);
    if (is(state, "error")) fail(run, "the run was aborted");
}

/* ------------------------------------------------------------------------------------------------------------- input */
/* The text of one turn as the model reads it. `continued`: a conversation is already there. */
static char *compose(Handle *handle, const RKLLMInput *input, bool continued) {
    const char *prompt = input->prompt_input, *role = "user", *think = "";
#ifdef HAVE_RKLLMInput_role
    role = input->role;
    if (!input->enable_thinking) think = "<think>\n\n</think>\n\n";
#endif
    if (!handle->prefix && !handle->model->template_parses) return strdup(prompt);
    char *system = strdup(handle->prefix ? handle->system : ""), *turn, *text;
    if (handle->prefix) {
        if (*think) say('W', "enable_thinking is not supported with a chat template that was set");
        turn = written("%s%s%s", handle->prefix, prompt, handle->postfix);
    } else {
        if (handle->tools) {
            free(system);
            system = written("<|im_start|>system\n%s\n\n# Tools\n\n%s<|im_end|>\n", handle->tools_system, handle->tools);
        }
        const char *tag = handle->tool_tag ? handle->tool_tag : "tool_response", *end = "<|im_end|>\n<|im_start|>assistant\n";
        turn = is(role, "tool") ? written("<|im_start|>user\n<%s>\n%s\n</%s>%s%s", tag, prompt, tag, end, think)
                                : written("<|im_start|>user\n%s%s%s", prompt, end, think);
    }
    if (!continued) handle->system_tokens = tokenize(handle->model, system, strlen(system)).count;
    /* Nobody sends the end of the answer before, and the model needs it. */
    text = written("%s%s", !continued ? system : handle->prefix ? "" : "<|im_end|>\n", turn);
    free(system);
    free(turn);
    return text;
}

/* The ids of one slot's input; count 0 after a failure. */
static Ids read_input(Run *run, const RKLLMInput *input, bool continued) {
    Model *model = run->handle->model;
    Ids found = {0};
    size_t count = 0;
    switch ((int)input->input_type) {
    case RKLLM_INPUT_PROMPT: {
#ifdef HAVE_RKLLMInput_role
        if (!input->role || (!is(input->role, "user") && !is(input->role, "tool")))
            return fail(run, "the role must be user or tool"), found;
#endif
        char *text = compose(run->handle, input, continued);
        if (log_level >= 2) say('I', "prompt: %s", text);
        found = tokenize(model, text, strlen(text));
        free(text);
        if (found.count == 0) fail(run, "the input is empty");
        return found;
    }
    case RKLLM_INPUT_TOKEN:
        count = input->token_input.n_tokens;
        if (count < 1 || count > MAX_TOKENS_IN) return fail(run, "the input has %zu tokens", count), found;
        for (size_t at = 0; at < count; at++) {
            int32_t id = input->token_input.input_ids[at];
            if (id < 0 || id >= model->vocab_size)
                return fail(run, "token %d is not in a vocabulary of %d", id, (int)model->vocab_size), found;
        }
        found = (Ids){allocate(count, sizeof(int32_t)), count};
        memcpy(found.ids, input->token_input.input_ids, count * sizeof(int32_t));
        return found;
    case RKLLM_INPUT_EMBED: /* A row of floats is as good as a token nobody has a text for. */
        count = input->embed_input.n_tokens;
        if (count < 1 || count > MAX_TOKENS_IN) return fail(run, "the input has %zu rows", count), found;
        found = (Ids){allocate(count, sizeof(int32_t)), count};
        for (size_t at = 0, width = model->hidden_size; at < count; at++) {
            uint64_t row = digest(DIGEST, input->embed_input.embed + at * width, width * sizeof(float));
            found.ids[at] = 0x40000000 | (row & 0x3FFFFFFF);
        }
        return found;
    case RKLLM_INPUT_MULTIMODAL:
        return fail(run, "this simulated model has no vision"), found;
    default:
        fail(run, "input type %d does not exist: is the binding made for " RUNTIME_VERSION "?", (int)input->input_type);
        return found;
    }
}

static int kept_tokens(const Handle *handle) {
    int keep = 0;
#ifdef HAVE_RKLLMParam_n_keep
    keep = handle->param.n_keep < 0 ? handle->system_tokens : handle->param.n_keep;
#endif
    return keep < handle->context ? keep : handle->context - 1;
}

/* Make room for one more token: the older half goes, but for what is to be kept. */
static void shift(const Handle *handle, Cache *cache) {
    int keep = kept_tokens(handle), half = (cache->length - keep) / 2;
    cut(handle->model, cache, keep, keep + (half > 0 ? half : 1));
}

static bool goes_on(const Run *run, const Cache *cache, const RKLLMInput *input) {
    const Handle *handle = run->handle;
    bool tool = false;
    if (RUNTIME < 10200 || cache->length == 0) return false;
#ifdef HAVE_RKLLMInput_role
    tool = handle->tools && input->input_type == RKLLM_INPUT_PROMPT && input->role && is(input->role, "tool");
#endif
    (void)input;
    return run->history || tool || (handle->history && is(handle->model->open.history_zero_clears, "no")) ||
           (handle->paused && is(handle->model->open.after_pause, "append"));
}

/* Read one slot's input into its cache. False after a failure, which has been told. */
static bool place(Run *run, int slot) {
    Handle *handle = run->handle;
    Model *model = handle->model;
    Cache *cache = &handle->slots[slot];
    const RKLLMInput *input = &run->inputs[slot];
    bool continued = goes_on(run, cache, input);
    Ids given = read_input(run, input, continued);
    if (given.count == 0) return false;
    if (log_level >= 2) {
        say('I', "current kv cache size: %d, keep history status: %d", cache->length, run->history);
        fputs("I rkllm: input tokens:", stdout);
        for (int at = 0; at < given.count; at++) printf(" %d", given.ids[at]);
        putchar('\n');
    }
    if (given.count + (continued ? kept_tokens(handle) : 0) > handle->context) {
        fail(run, "the prompt has %d tokens, which exceeds max_context_len %d", given.count, handle->context);
        free(given.ids);
        return false;
    }
    int reused = 0;
    if (continued) {
        while (cache->length + given.count > handle->context) shift(handle, cache);
    } else {
        const uint64_t *voice = is(model->open.adapter_keeps_cache, "no") ? &run->voice : NULL;
        bool reusable = RUNTIME >= (input->input_type == RKLLM_INPUT_EMBED ? 10203 : 10200);
        if (reusable && model->full_attention) reused = common(cache, given.ids, given.count - 1, voice);
        else if (reusable && cache->length) say('W', "the model does not support kv cache reuse. clearing all caches");
        int from_file = model->full_attention ? common(&handle->loaded, given.ids, given.count - 1, voice) : 0;
        cache->length = reused;
        for (; reused < from_file; reused++) append(model, cache, given.ids[reused], handle->loaded.voices[reused]);
    }
    for (int at = reused; at < given.count; at++) append(model, cache, given.ids[at], run->voice);
    run->prompt[slot] = given.count;
    run->processed[slot] = given.count - reused;
    free(given.ids);
    return true;
}

/* --------------------------------------------------------------------------------------------------- output of a run */
static float *room_for_rows(Run *run, int rows, int width) {
    Handle *handle = run->handle;
    size_t size = (size_t)rows * width * sizeof(float);
    if (size > CALLBACK_BYTES)
        violation("%d rows of %d floats are wanted, and the simulator allows 8 MB per callback", rows, width);
    if (size > handle->rows_size) {
        free(handle->rows);
        handle->rows = allocate(size, 1);
        handle->rows_size = size;
    }
    return handle->rows;
}

static void release_rows(Handle *handle) {
    free(handle->rows);
    handle->rows = NULL;
    handle->rows_size = 0;
}

/* Tell of rows, which die with their callback: what is left of them is NaN. */
static int tell_rows(Run *run, LLMCallState state) {
    int answer = tell(run, state);
    memset(run->handle->rows, 0xFF, run->handle->rows_size);
    if (answer == RELEASE) release_rows(run->handle);
    run->handle->paused = answer == PAUSE;
    return answer;
}

static void give_hidden(Run *run) {
    Handle *handle = run->handle;
    int width = handle->model->hidden_size, all = 0, first = 0, rows = 0;
    LLMCallState state = RKLLM_RUN_NORMAL;
#ifdef HAVE_RKLLM_RUN_GET_LAST_HIDDEN_LAYER
    state = RKLLM_RUN_GET_LAST_HIDDEN_LAYER;
#endif
    for (int slot = 0; slot < handle->n_slots; slot++) all += run->processed[slot];
    float *numbers = room_for_rows(run, all, width);
    for (int slot = 0; slot < handle->n_slots; slot++, first += rows) {
        const Cache *cache = &handle->slots[slot];
        rows = run->processed[slot];
        for (int row = 0; row < rows; row++) {
            uint64_t hash = cache->states[cache->length - rows + row];
            for (int at = 0; at < width; at++) numbers[(first + row) * width + at] = ((int)noise(hash, at) - 32768) / 32768.0f;
        }
        run->results[slot].last_hidden_layer.hidden_states = numbers + first * width;
        run->results[slot].last_hidden_layer.embd_size = width;
        run->results[slot].last_hidden_layer.num_tokens = rows;
    }
    int answer = tell_rows(run, state);
    if (answer != RELEASE) handle->resident += all;
    if (answer != PAUSE) finish(run);
}

static Choice greedy(const Run *run, const Cache *cache, int length) {
    bool ignore_eos = false;
#ifdef HAVE_RKLLMParam_ignore_eos_token
    ignore_eos = run->handle->param.ignore_eos_token;
#endif
    return next_token(run->handle->model, cache->ids, length, cache->states[length - 1], ignore_eos);
}

static int32_t choose(Run *run, const Cache *cache) {
    Handle *handle = run->handle;
    Choice choice = greedy(run, cache, cache->length);
    return sample(handle->model, &run->sampling, cache->ids, cache->length, cache->states[cache->length - 1], choice,
                  &handle->random, &handle->surprise);
}

static void add_token(Run *run, Cache *cache, int32_t id) {
    if (cache->length >= run->handle->context) shift(run->handle, cache);
    append(run->handle->model, cache, id, run->voice);
}

/* The text of a token in `result`. True while the bytes so far are not yet a character. */
static bool write_text(Run *run, int slot, int32_t id) {
    Handle *handle = run->handle;
    Model *model = handle->model;
    RKLLMResult *result = &run->results[slot];
    char *text = handle->text + 64 * slot, *pending = run->pending[slot];
    int *count = &run->n_pending[slot], needed = 0;
    result->token_id = id;
    result->text = text;
    text[0] = 0;
    if (id >= model->n_pieces || (model->pieces[id].kind == 'c' && handle->param.skip_special_token)) return false;
    const Piece *piece = &model->pieces[id];
    if (id < 256) {
        pending[(*count)++] = id;
        uint8_t lead = pending[0];
        needed = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
    } else {
        *count = 0;
    }
    bool whole = *count >= needed || (*count > 1 && (pending[*count - 1] & 0xC0) != 0x80);
    if (model->split_utf8 || id >= 256) {
        memcpy(text, piece->bytes, piece->length);
        text[piece->length] = 0;
    } else if (whole) {
        memcpy(text, pending, *count);
        text[*count] = 0;
    }
    if (whole) *count = 0;
    else if (!model->split_utf8 && is(model->open.null_text_in_waiting_finish, "yes")) result->text = NULL;
    if (model->null_text || run->dropped) result->text = NULL;
    return !whole;
}

static void misbehave(const Model *model, int said) {
    if (said == model->segfault_after) crash();
    if (said == model->exit_after) _exit(70);
    while (said == model->hang_after) sleep(1000);
}

/* Whether the answer is known to end after `id`: only then can the last token be late. */
static bool is_last(Run *run, int slot, int32_t id, int said) {
    Cache *cache = &run->handle->slots[slot];
    if (said + 1 == run->limit) return true;
    if (cache->length >= run->handle->context) return false;
    append(run->handle->model, cache, id, run->voice);
    bool last = greedy(run, cache, cache->length).id == run->handle->model->end;
    cache->length--;
    return last;
}

static void generate(Run *run) {
    Handle *handle = run->handle;
    Model *model = handle->model;
    int n_slots = handle->n_slots, said = 0;
    int32_t chosen[MAX_BATCH];
    bool done[MAX_BATCH] = {false};
    double period = duration_ms(1, model->decode_tps);
    misbehave(model, 0);
    for (;; said++) {
        bool ended = true, last = false, speaks = false, waiting = true;
        if (said == model->error_after) return fail(run, "matmul(w8a8) run failed");
        for (int slot = 0; slot < n_slots; slot++) {
            if (done[slot]) continue;
            chosen[slot] = choose(run, &handle->slots[slot]);
            if (chosen[slot] == model->end) done[slot] = is(model->open.eos_delivered, "no");
            else speaks = true, last = last || (model->last_token_late > 0 && is_last(run, slot, chosen[slot], said));
            ended = ended && done[slot];
        }
        if (ended) return finish(run);
        pass(run, (speaks ? period : 0) + (said == model->slow_token ? model->slow_token_ms : 0) + (last ? model->last_token_late : 0));
        if (abort_is_due(handle)) return end_aborted(run);
        run->generate_ms += speaks ? period : 0; /* An end takes no time, be it told or not. */
        for (int slot = 0; slot < n_slots; slot++) {
            if (done[slot]) {
                run->results[slot].token_id = -1;
                continue;
            }
            waiting = write_text(run, slot, chosen[slot]) && waiting;
            if (chosen[slot] != model->end) run->said[slot]++;
        }
        int answer = tell(run, waiting ? RKLLM_RUN_WAITING : RKLLM_RUN_NORMAL);
        misbehave(model, said + 1);
        bool going = answer != PAUSE && !abort_is_due(handle) && said + 1 < run->limit;
        for (int slot = 0; slot < n_slots; slot++) {
            done[slot] = done[slot] || chosen[slot] == model->end;
            if (!done[slot] && (going || is(model->open.last_token_cached, "yes")))
                add_token(run, &handle->slots[slot], chosen[slot]);
        }
        if ((handle->paused = answer == PAUSE)) return;
        if (abort_is_due(handle)) return end_aborted(run);
        if (said + 1 >= run->limit) return finish(run);
    }
}

#ifdef HAVE_RKLLM_INFER_GET_LOGITS
static void fill_logits(const Model *model, float *row, uint64_t state, Choice choice) {
    for (int id = 0; id < (int)model->vocab_size; id++) row[id] = logit(model, state, id);
    row[model->wrong_logits ? '!' : choice.id] = choice.certain ? 20 : 10;
}

/* Logits of what was read; then, unless the callback pauses, of each token that is generated. */
static void give_logits(Run *run) {
    Handle *handle = run->handle;
    Model *model = handle->model;
    Cache *cache = &handle->slots[0];
    int width = model->vocab_size, rows = is(model->open.logits_rows, "all") ? run->processed[0] : 1;
    for (int said = 0; said < run->limit; said++, rows = 1) {
        float *numbers = room_for_rows(run, rows, width);
        misbehave(model, said);
        if (said == model->error_after) return fail(run, "matmul(w8a8) run failed");
        for (int row = 0; row < rows; row++) {
            int length = cache->length - rows + row + 1;
            fill_logits(model, numbers + (size_t)row * width, cache->states[length - 1], greedy(run, cache, length));
        }
        pass(run, model->logits_ms);
        if (abort_is_due(handle)) return end_aborted(run);
        run->results[0].logits.logits = numbers;
        run->results[0].logits.vocab_size = width;
        run->results[0].logits.num_tokens = rows;
        if (tell_rows(run, RKLLM_RUN_NORMAL) == PAUSE) return;
        if (abort_is_due(handle)) return end_aborted(run);
        int32_t chosen = choose(run, cache);
        if (chosen == model->end) break;
        add_token(run, cache, chosen);
        run->said[0]++;
        run->generate_ms += duration_ms(1, model->decode_tps);
        pass(run, duration_ms(1, model->decode_tps));
    }
    finish(run);
}
#endif

/* ------------------------------------------------------------------------------------------------ prompt cache files */
#define CACHE_MAGIC "RKLLM-SIMULATED-CACHE 1\n"

static uint64_t fingerprint(const Handle *handle) {
    return digest_text(handle->model->start ^ handle->model->n_pieces ^ (uint64_t)handle->context << 32, handle->model->name);
}

/* Writes or reads as many bytes as there would be, of which all behind the ids are a hole. */
static off_t move_bytes(const Model *model, uint64_t length) {
    off_t size = length * model->cache_kb * 1024;
    if (model->cache_mb_s > 0) wait_until(now_ns() + (int64_t)(size / model->cache_mb_s * 1000 * model->time_scale));
    return size;
}

static void write_prompt_cache(const Handle *handle, const char *path, int length) {
    const Cache *cache = &handle->slots[0];
    uint64_t head[2] = {fingerprint(handle), length};
    FILE *file = handle->model->cache_save_fail ? NULL : fopen(path, "wb");
    bool good = file && fputs(CACHE_MAGIC, file) >= 0 && fwrite(head, sizeof head, 1, file) == 1 &&
                fwrite(cache->ids, sizeof *cache->ids, length, file) == (size_t)length &&
                fwrite(cache->voices, sizeof *cache->voices, length, file) == (size_t)length;
    off_t size = move_bytes(handle->model, length);
    if (good && ftell(file) < size) good = fflush(file) == 0 && ftruncate(fileno(file), size) == 0;
    good = file && fclose(file) == 0 && good;
    if (!good) say('E', "failed to write the prompt cache %s", path);
}

static bool read_prompt_cache(Handle *handle, const char *path) {
    char magic[sizeof CACHE_MAGIC] = "";
    uint64_t head[2] = {0, 0};
    FILE *file = handle->model->cache_load_fail ? NULL : fopen(path, "rb");
    Cache *cache = &handle->loaded;
    bool good = file && fread(magic, sizeof CACHE_MAGIC - 1, 1, file) == 1 && is(magic, CACHE_MAGIC) &&
                fread(head, sizeof head, 1, file) == 1 && head[0] == fingerprint(handle) &&
                head[1] <= (uint64_t)handle->context &&
                fread(cache->ids, sizeof *cache->ids, head[1], file) == head[1] &&
                fread(cache->voices, sizeof *cache->voices, head[1], file) == head[1];
    cache->length = good ? head[1] : 0;
    for (int at = 0; handle->model->cache_spoiled && at < cache->length; at++) cache->voices[at] = ~cache->voices[at];
    move_bytes(handle->model, cache->length);
    if (file) fclose(file);
    if (!good) say('E', "failed to load the prompt cache %s: it is missing, broken or of another model or context", path);
    return good;
}

/* ----------------------------------------------------------------------------------------------------- the whole run */
/* Everything the caller lends for the time of a run. */
static uint64_t digest_lent(const Run *run) {
    uint64_t found = digest(DIGEST, run->inputs, run->handle->n_slots * sizeof *run->inputs);
    for (int slot = 0; slot < run->handle->n_slots; slot++) {
        const RKLLMInput *input = &run->inputs[slot];
        if (input->input_type == RKLLM_INPUT_PROMPT) found = digest_text(found, input->prompt_input);
        if (input->input_type == RKLLM_INPUT_TOKEN && input->token_input.n_tokens <= MAX_TOKENS_IN)
            found = digest(found, input->token_input.input_ids, input->token_input.n_tokens * sizeof(int32_t));
#ifdef HAVE_RKLLMInput_role
        found = digest_text(found, input->role);
#endif
    }
    const RKLLMInferParam *infer = run->infer;
    found = digest(found, infer, sizeof *infer);
    if (infer->lora_params) found = digest_text(found, infer->lora_params->lora_adapter_name);
    if (infer->prompt_cache_params) found = digest_text(found, infer->prompt_cache_params->prompt_cache_path);
#ifdef HAVE_RKLLMInferParam_sampling_params
    if (infer->sampling_params) found = digest(found, infer->sampling_params, sizeof *infer->sampling_params);
#endif
    return found;
}

/* What the run was asked for, settled. False after a failure, which has been told. */
static bool settle(Run *run) {
    Handle *handle = run->handle;
    const RKLLMInferParam *infer = run->infer;
    int modes = RKLLM_INFER_GET_LAST_HIDDEN_LAYER;
#ifdef HAVE_RKLLM_INFER_GET_LOGITS
    modes = RKLLM_INFER_GET_LOGITS;
    if (infer->mode == RKLLM_INFER_GET_LOGITS && handle->n_slots > 1)
        return fail(run, "Getting the logits is not supported for multiple batches"), false;
#endif
    if (infer->mode > (unsigned)modes) return fail(run, "infer mode %d does not exist", (int)infer->mode), false;
    if (infer->prompt_cache_params && !in_range("save_prompt_cache", infer->prompt_cache_params->save_prompt_cache, 0, 1))
        return fail(run, "the parameters of the prompt cache are refused"), false;
    run->sampling = handle->sampling;
    run->limit = handle->param.max_new_tokens;
#ifdef HAVE_RKLLMInferParam_keep_history
    if (!in_range("keep_history", infer->keep_history, 0, 1)) return fail(run, "keep_history is refused"), false;
    run->history = infer->keep_history;
#endif
#ifdef HAVE_RKLLMInferParam_sampling_params
    if (infer->max_new_tokens > 0) run->limit = infer->max_new_tokens;
    if (infer->sampling_params) {
        run->sampling = (Sampling)COPY_SAMPLING(infer->sampling_params);
        if (!check_sampling(&run->sampling)) return fail(run, "the sampling parameters are refused"), false;
    }
#endif
    if (run->limit <= 0) run->limit = handle->context;
    handle->surprise = 2 * run->sampling.mirostat_tau;
    if (infer->lora_params) {
        const char *name = infer->lora_params->lora_adapter_name;
        Adapter *adapter = handle->adapters;
        while (adapter && !(name && is(adapter->name, name))) adapter = adapter->next;
        if (!adapter) return fail(run, "the lora adapter %s is not loaded", name ? name : "(null)"), false;
        run->voice = adapter->voice;
    }
    return true;
}

static void answer(Run *run) {
    Handle *handle = run->handle;
    run->deadline = now_ns();
    if (handle->empty) return fail(run, "the model is not loaded");
    if (!settle(run)) return;
    int processed = 0;
    for (int slot = 0; slot < handle->n_slots; slot++) {
        if (!place(run, slot)) return;
        processed += run->processed[slot];
    }
    handle->paused = false;
    handle->history = run->history || (handle->history && is(handle->model->open.history_zero_clears, "no"));
    bool hidden = run->infer->mode == RKLLM_INFER_GET_LAST_HIDDEN_LAYER;
    run->prefill_ms = duration_ms(processed, handle->model->prefill_tps);
    if (hidden) run->prefill_ms += handle->resident * handle->model->leak / 1000;
    pass(run, run->prefill_ms);
    if (abort_is_due(handle)) end_aborted(run);
    else if (hidden) give_hidden(run);
#ifdef HAVE_RKLLM_INFER_GET_LOGITS
    else if (run->infer->mode == RKLLM_INFER_GET_LOGITS) give_logits(run);
#endif
    else generate(run);
    RKLLMPromptCacheParam *keep = run->infer->prompt_cache_params;
    if (keep && keep->save_prompt_cache && run->status == 0) {
        int length = run->prompt[0] < handle->slots[0].length ? run->prompt[0] : handle->slots[0].length;
        write_prompt_cache(handle, keep->prompt_cache_path ? keep->prompt_cache_path : DEFAULT_PROMPT_CACHE, length);
    }
}

static void *run_thread(void *given) {
    Run *run = given;
    uint64_t lent = digest_lent(run);
    answer(run);
    if (digest_lent(run) != lent) violation("the input or the parameters of rkllm_run were changed or freed during the run");
    run->handle->running = false;
    return NULL;
}

/* ----------------------------------------------------------------------------------------------------------- the API */
RKLLMParam rkllm_createDefaultParam(void) {
    RKLLMParam param = {.max_context_len = DEFAULT_MAX_CONTEXT_LEN, .max_new_tokens = DEFAULT_MAX_NEW_TOKENS,
                        .top_k = 40, .top_p = 0.9f, .temperature = 0.8f, .repeat_penalty = 1.1f,
                        .mirostat_tau = 5.0f, .mirostat_eta = 0.1f};
#ifdef HAVE_RKLLMParam_n_keep
    param.n_keep = -1;
    param.extend_param.embed_flash = DEFAULT_EMBED_FLASH;
    param.extend_param.enabled_cpus_num = 4;
    param.extend_param.enabled_cpus_mask = 0xF0;
#endif
#ifdef HAVE_RKLLMExtendParam_n_batch
    param.extend_param.n_batch = 1;
#endif
    return param;
}

static void say_version(const Model *model) {
    const char *driver = model ? model->driver : "0.9.8", *platform = model ? model->platform : "RK3588";
    int major, minor, patch, needed = RUNTIME < 10200 ? 7 : 8;
    say('I', "rkllm-runtime version: " RUNTIME_VERSION "%s%s%s%s", *driver ? ", rknpu driver version: " : "", driver,
        *platform ? ", platform: " : "", platform);
    if (sscanf(driver, "%d.%d.%d", &major, &minor, &patch) == 3 && major * 10000 + minor * 100 + patch < 900 + needed)
        say('W', "Your rknpu driver version is too low, please upgrade to 0.9.%d", needed);
}

static void say_model(const Model *model, const RKLLMParam *param) {
    bool with_dtype = RUNTIME > 10200;
    if (RUNTIME >= 10200)
        say('I', "rkllm-toolkit version: %s, max_context_limit: %d, npu_core_num: %d, target_platform: %s%s%s",
            model->toolkit, (int)model->max_context_limit, (int)model->npu_cores, model->platform,
            with_dtype ? ", model_dtype: " : "", with_dtype ? model->dtype : "");
    if (!model->template_parses && RUNTIME >= 10200)
        say('W', "Chat template auto-parsing failed: please configure it via rkllm_set_chat_template");
    if (log_level < 2) return;
    say('I', "max_context_len: %d, max_new_tokens: %d, top_k: %d, top_p: %g, temperature: %g", param->max_context_len,
        param->max_new_tokens, param->top_k, param->top_p, param->temperature);
    say('I', RUNTIME >= 10300 ? "EOS token[%d]" : "EOS token: %d", model->end);
}

static bool take_memory(Handle *handle) {
    double *used = &domain_mb[handle->domain = handle->param.extend_param.base_domain_id];
    pthread_mutex_lock(&registry);
    bool fits = !handle->model->out_of_npu_memory && *used + handle->model->memory_mb <= DOMAIN_MB;
    if (fits) *used += handle->model->memory_mb;
    pthread_mutex_unlock(&registry);
    if (!fits) say('E', "failed to malloc npu memory, size: %.0f MB, domain: %d", handle->model->memory_mb, handle->domain);
    return fits;
}

static int load(Handle *handle) {
    Model *model = handle->model;
    if (model->init_segfault) crash();
    say_model(model, &handle->param);
    wait_until(now_ns() + (int64_t)(model->load_ms * model->time_scale * 1e6));
    if (model->init_fail) return refuse("failed to load the model");
    if (!check_param(&handle->param, model) || !take_memory(handle)) return -1;
    handle->n_slots = 1;
#ifdef HAVE_RKLLMExtendParam_n_batch
    handle->n_slots = handle->param.extend_param.n_batch;
#endif
    handle->context = handle->param.max_context_len;
    handle->sampling = (Sampling)COPY_SAMPLING(&handle->param);
    handle->random = mix((uint64_t)model->seed + 1);
    handle->slots = allocate(handle->n_slots, sizeof(Cache));
    for (int slot = 0; slot < handle->n_slots; slot++) handle->slots[slot] = new_cache(handle->context + 1);
    handle->loaded = new_cache(handle->context + 1);
    handle->text = allocate(handle->n_slots, 64);
    handle->given_digest = digest_given(handle);
    return 0;
}

int rkllm_init(LLMHandle *out, RKLLMParam *param, INIT_CALLBACK callback) {
    forbid_inside("rkllm_init");
    if (!out || !param || !callback) violation("rkllm_init was given no handle, no parameters or no callback");
    *out = NULL;
    Handle *handle = allocate(1, sizeof *handle);
    const char *complaint;
    handle->given = param;
    handle->param = *param;
    handle->given_callback = callback;
#ifdef HAVE_RKLLMCallback_result_callback
    handle->callback = callback->result_callback;
    handle->userdata = callback->result_userdata;
    if (!handle->callback) violation("rkllm_init was given no result_callback");
#else
    handle->callback = callback;
#endif
    handle->model = read_model(param->model_path, &complaint);
    say_version(handle->model);
    if (handle->model) {
        if (load(handle) != 0) return -1;
    } else {
        say('E', "%s", complaint);
        if (RUNTIME >= 10200) return -1;
        handle->empty = true; /* 1.1 was seen to call such a load a success. */
        handle->text = allocate(handle->n_slots = 1, 64);
        handle->model = allocate(1, sizeof(Model));
#define NOTHING_OPEN(name, values) handle->model->open.name = first_of(values);
        SWITCHES(NOTHING_OPEN)
    }
    say('I', "rkllm init success");
    pthread_mutex_lock(&registry);
    handle->alive = true;
    handle->next = handles;
    handles = handle;
    pthread_mutex_unlock(&registry);
    *out = handle;
    return 0;
}

int rkllm_destroy(LLMHandle given) {
    Handle *handle = idle_handle(given, "rkllm_destroy");
    handle->alive = false;
    pthread_mutex_lock(&registry);
    domain_mb[handle->domain] -= handle->model->memory_mb;
    pthread_mutex_unlock(&registry);
    for (int slot = 0; handle->slots && slot < handle->n_slots; slot++) free_cache(&handle->slots[slot]);
    free_cache(&handle->loaded);
    release_rows(handle);
    free(handle->model->longer);
    return 0;
}

int rkllm_run(LLMHandle given, RKLLMInput *inputs, RKLLMInferParam *infer, void *userdata) {
    forbid_inside("rkllm_run");
    Handle *handle = known_handle(given, "rkllm_run");
    if (!inputs || !infer) violation("rkllm_run was given no input or no parameters");
    pthread_mutex_lock(&registry);
    if (handle->running) violation("rkllm_run was called while the handle runs: one run at a time");
    handle->running = true;
    handle->aborted = false;
    pthread_mutex_unlock(&registry);
    check_given(handle);
    Run *run = allocate(1, sizeof *run);
    *run = (Run){.handle = handle, .inputs = inputs, .infer = infer, .userdata = userdata};
    pthread_t thread;
    if (is(handle->model->open.callback_thread, "caller")) run_thread(run);
    else if (pthread_create(&thread, NULL, run_thread, run) == 0) pthread_join(thread, NULL);
    else violation("out of threads");
    int status = run->status;
    free(run);
    return status;
}

/* Nobody is known to have made it work, and a thread of the caller's does the same. */
int rkllm_run_async(LLMHandle given, RKLLMInput *inputs, RKLLMInferParam *infer, void *userdata) {
    idle_handle(given, "rkllm_run_async");
    (void)inputs, (void)infer, (void)userdata;
    return refuse("rkllm_run_async is not simulated: call rkllm_run on a thread");
}

int rkllm_abort(LLMHandle given) {
    Handle *handle = known_handle(given, "rkllm_abort");
    pthread_mutex_lock(&registry);
    bool runs = handle->running;
    if (runs && !handle->model->ignore_abort && !handle->aborted) {
        handle->aborted_at = now_ns();
        handle->aborted = true;
    }
    pthread_mutex_unlock(&registry);
    return runs ? 0 : -1;
}

int rkllm_is_running(LLMHandle given) {
    Handle *handle = known_handle(given, "rkllm_is_running");
    bool one = RUNTIME >= 10300 || is(handle->model->open.running_polarity, "one");
    return handle->running == one;
}

int rkllm_load_lora(LLMHandle given, RKLLMLoraAdapter *adapter) {
    Handle *handle = idle_handle(given, "rkllm_load_lora");
    if (!adapter || !adapter->lora_adapter_path || !adapter->lora_adapter_name)
        violation("rkllm_load_lora was given no adapter, path or name");
    const char *name = adapter->lora_adapter_name;
    char magic[24] = "";
    FILE *file = fopen(adapter->lora_adapter_path, "r");
    bool good = file && fgets(magic, sizeof magic, file) && is(magic, "RKLLM-SIMULATED-LORA 1\n");
    if (file) fclose(file);
    if (!good || !in_range("scale", adapter->scale, -100, 100))
        return refuse("failed to load the lora adapter %s", adapter->lora_adapter_path);
    Adapter *added = allocate(1, sizeof *added);
    uint64_t voice = digest(digest(DIGEST, name, strlen(name)), &adapter->scale, sizeof adapter->scale);
    *added = (Adapter){handle->adapters, strdup(name), voice};
    handle->adapters = added;
    return 0;
}

int rkllm_load_prompt_cache(LLMHandle given, const char *path) {
    Handle *handle = idle_handle(given, "rkllm_load_prompt_cache");
    if (handle->has_loaded) return refuse("a prompt cache is loaded: release it first");
    handle->has_loaded = path && !handle->empty && read_prompt_cache(handle, path);
    return handle->has_loaded ? 0 : -1;
}

int rkllm_release_prompt_cache(LLMHandle given) {
    Handle *handle = idle_handle(given, "rkllm_release_prompt_cache");
    handle->loaded.length = 0;
    handle->has_loaded = false;
    return 0;
}

#ifdef HAVE_rkllm_clear_kv_cache
static void forget(Handle *handle, int kept) {
    for (int slot = 0; slot < handle->n_slots; slot++)
        if (handle->slots[slot].length > kept) handle->slots[slot].length = kept;
    handle->history = handle->paused = false;
    handle->resident = 0;
    release_rows(handle);
}

#ifdef HAVE_rkllm_get_kv_cache_size
int rkllm_clear_kv_cache(LLMHandle given, int keep_system_prompt, int *start_pos, int *end_pos) {
#else
int rkllm_clear_kv_cache(LLMHandle given, int keep_system_prompt) {
    int *start_pos = NULL, *end_pos = NULL;
#endif
    Handle *handle = idle_handle(given, "rkllm_clear_kv_cache");
    if (!start_pos != !end_pos || (start_pos && !handle->paused))
        return refuse("ranges need both ends, and a run that was paused without keep_history");
    for (int slot = 0; start_pos && slot < handle->n_slots; slot++) {
        int first = start_pos[slot], stop = end_pos[slot], length = handle->slots[slot].length;
        if (first < 0 || first > stop || stop > length)
            return refuse("the range [%d, %d) is not inside a kv cache of %d", first, stop, length);
        cut(handle->model, &handle->slots[slot], first, stop);
    }
    if (!start_pos) forget(handle, keep_system_prompt ? handle->system_tokens : 0);
    return 0;
}

int rkllm_set_chat_template(LLMHandle given, const char *system_prompt, const char *prompt_prefix, const char *prompt_postfix) {
    Handle *handle = idle_handle(given, "rkllm_set_chat_template");
    if (!system_prompt || !prompt_prefix || !prompt_postfix) violation("rkllm_set_chat_template was given no text");
    replace(&handle->system, system_prompt);
    replace(&handle->prefix, prompt_prefix);
    replace(&handle->postfix, prompt_postfix);
    forget(handle, 0);
    return 0;
}
#endif

#ifdef HAVE_rkllm_get_kv_cache_size
int rkllm_get_kv_cache_size(LLMHandle given, int *cache_sizes) {
    Handle *handle = idle_handle(given, "rkllm_get_kv_cache_size");
    if (!cache_sizes) violation("rkllm_get_kv_cache_size was given no room");
    for (int slot = 0; slot < handle->n_slots; slot++) cache_sizes[slot] = handle->slots[slot].length;
    return 0;
}

int rkllm_set_function_tools(LLMHandle given, const char *system_prompt, const char *tools, const char *tool_response_str) {
    Handle *handle = idle_handle(given, "rkllm_set_function_tools");
    if (!system_prompt || !tools || !tool_response_str) violation("rkllm_set_function_tools was given no text");
    if (handle->prefix) say('W', "a chat template was set: the tools will not reach the prompt");
    replace(&handle->tools_system, system_prompt);
    replace(&handle->tools, tools);
    replace(&handle->tool_tag, tool_response_str);
    return 0;
}

int rkllm_set_cross_attn_params(LLMHandle given, RKLLMCrossAttnParam *cross_attn_params) {
    idle_handle(given, "rkllm_set_cross_attn_params");
    (void)cross_attn_params;
    return refuse("this simulated model has no cross attention");
}
#endif

/* --------------------------------------------------------------------------------------------- only in the simulator */
/* The ids of a text; returns their count, and writes as many as there is room for. */
EXPORTED int simulator_tokenize(LLMHandle given, const char *text, int32_t *ids, int room) {
    Ids found = tokenize(known_handle(given, "simulator_tokenize")->model, text, strlen(text));
    memcpy(ids, found.ids, (found.count < room ? found.count : room) * sizeof *ids);
    free(found.ids);
    return found.count;
}

/* The ids in a slot's cache, likewise. */
EXPORTED int simulator_cache(LLMHandle given, int slot, int32_t *ids, int room) {
    const Handle *handle = idle_handle(given, "simulator_cache");
    const Cache *cache = &handle->slots[slot];
    memcpy(ids, cache->ids, (cache->length < room ? cache->length : room) * sizeof *ids);
    return cache->length;
}
