/* BLOOM in C, as a program that bloomref can check: see docs/adapters.md and specs/97-program-protocol.md.
 *
 *     cc -std=c99 -O2 -o bloom docs/examples/bloom.c -lm
 *
 * Weights and results are float32, sums are double. It reads JSON and safetensors only as far as this protocol goes.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char refusal[200]; /* error message to send in place of a result */
static const char *kind;

static int refuse(const char *why, const char *what) {
    kind = why;
    snprintf(refusal, sizeof refusal, "%s", what);
    return 0;
}

static void *grab(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) { fprintf(stderr, "out of memory\n"); exit(1); }
    return memory;
}

/* --- JSON: the value of a key; a key is found by its name in quotes, so no string may contain such a name ------- */

static const char *value_of(const char *json, const char *key) {
    char quoted[300];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *at = json ? strstr(json, quoted) : NULL;
    if (!at) return NULL;
    at += strlen(quoted);
    while (*at == ' ') at++;
    return at;
}

static double number(const char *json, const char *key, double otherwise) {
    const char *at = value_of(json, key);
    if (!at) return otherwise;
    return strncmp(at, "true", 4) == 0 ? 1 : strncmp(at, "false", 5) == 0 ? 0 : strtod(at, NULL);
}

static int text(const char *json, const char *key, char *out, size_t size) {
    const char *at = value_of(json, key);
    size_t n = 0;
    if (!at || *at++ != '"') return 0;
    for (; *at && *at != '"' && n + 1 < size; at++) out[n++] = *at == '\\' ? *++at : *at;
    out[n] = 0;
    return 1;
}

/* --- safetensors: eight bytes of length, a JSON header, the bytes of the tensors --------------------------------- */

typedef struct { char *header, *bytes; } File;

static int open_file(File *file, const char *path) {
    FILE *stream = fopen(path, "rb");
    uint64_t length;
    long size;
    if (!stream) return refuse("BadWeights", "a file cannot be opened");
    fseek(stream, 0, SEEK_END);
    size = ftell(stream);
    rewind(stream);
    if (size < 8 || fread(&length, 8, 1, stream) != 1 || length > (uint64_t)size - 8) {
        fclose(stream);
        return refuse("BadWeights", "a file is damaged");
    }
    file->header = grab(length + 1, 1);
    file->bytes = grab(size - 8 - length, 1);
    size_t got = fread(file->header, 1, length, stream) + fread(file->bytes, 1, size - 8 - length, stream);
    fclose(stream);
    return got == (size_t)size - 8 ? 1 : refuse("BadWeights", "a file is damaged");
}

static void close_file(File *file) { free(file->header); free(file->bytes); file->header = file->bytes = NULL; }

static void *tensor(const File *file, const char *name, long shape[2]) {
    const char *entry = value_of(file->header, name), *at = value_of(entry, "shape"), *where = value_of(entry, "data_offsets");
    char *end;
    if (!at || !where) { refuse("BadWeights", name); return NULL; }
    shape[0] = strtol(at + 1, &end, 10);
    shape[1] = *end == ',' ? strtol(end + 1, NULL, 10) : 1;
    return file->bytes + strtol(where + 1, NULL, 10);
}

static void write_file(const char *path, const char *name, long rows, long time, long width, const float *data) {
    char header[400];
    uint64_t length;
    size_t count = (size_t)rows * time * width;
    snprintf(header, sizeof header, "{\"%s\":{\"dtype\":\"F32\",\"shape\":[%ld,%ld,%ld],\"data_offsets\":[0,%zu]}}", name, rows, time, width, 4 * count);
    length = strlen(header);
    FILE *stream = fopen(path, "wb");
    if (!stream) { refuse("Failed", "the file of results cannot be written"); return; }
    fwrite(&length, 8, 1, stream);
    fwrite(header, 1, length, stream);
    fwrite(data, 4, count, stream);
    fclose(stream);
}

/* --- the model ----------------------------------------------------------------------------------------------------- */

static struct { long V, D, L, H, K, F; double epsilon; int post_norm, tied; } c;
static File weights;

static const float *weight(const char *format, long layer, long count) {
    char name[200];
    long shape[2];
    snprintf(name, sizeof name, format, layer);
    const float *found = tensor(&weights, name, shape);
    if (found && shape[0] * shape[1] != count) { refuse("BadWeights", name); return NULL; }
    return found;
}

#define H_ "transformer.h.%ld."
typedef struct { const float *w, *b; } Pair;
typedef struct { Pair norm1, qkv, dense, norm2, up, down; } Layer;
static Layer *layers;
static Pair norm0, normf;
static const float *embedding, *head;

static int pair(Pair *p, const char *name, long layer, long out, long in) {
    char full[200];
    snprintf(full, sizeof full, "%s.weight", name);
    p->w = weight(full, layer, out * in);
    snprintf(full, sizeof full, "%s.bias", name);
    p->b = p->w ? weight(full, layer, out) : NULL;
    return p->b != NULL;
}

static int load(const char *request) {
    char path[4096], dtype[20] = "";
    long D, F;
    text(request, "dtype", dtype, sizeof dtype);
    if (strcmp(dtype, "float32")) return refuse("Unsupported", "this program computes in float32 only");
    c.V = number(request, "vocab_size", 0), c.D = D = number(request, "hidden_size", 0), c.L = number(request, "n_layer", 0);
    c.H = number(request, "n_head", 1), c.F = F = number(request, "intermediate_size", 4 * D), c.K = D / c.H;
    c.epsilon = number(request, "layer_norm_epsilon", 1e-5), c.tied = number(request, "tie_word_embeddings", 1);
    c.post_norm = number(request, "apply_residual_connection_post_layernorm", 0);
    close_file(&weights), free(layers), layers = NULL;
    if (!text(request, "weights", path, sizeof path) || !open_file(&weights, path)) return 0;
    layers = grab(c.L, sizeof *layers);
    embedding = weight("transformer.word_embeddings.weight", 0, c.V * D);
    head = c.tied ? embedding : weight("lm_head.weight", 0, c.V * D);
    int good = embedding && head && pair(&norm0, "transformer.word_embeddings_layernorm", 0, D, 1) && pair(&normf, "transformer.ln_f", 0, D, 1);
    for (long i = 0; good && i < c.L; i++) {
        Layer *l = layers + i;
        good = pair(&l->norm1, H_ "input_layernorm", i, D, 1) && pair(&l->qkv, H_ "self_attention.query_key_value", i, 3 * D, D) &&
               pair(&l->dense, H_ "self_attention.dense", i, D, D) && pair(&l->norm2, H_ "post_attention_layernorm", i, D, 1) &&
               pair(&l->up, H_ "mlp.dense_h_to_4h", i, F, D) && pair(&l->down, H_ "mlp.dense_4h_to_h", i, D, F);
    }
    if (!good) free(layers), layers = NULL;
    return good;
}

static void layer_norm(float *out, const float *x, Pair p) {
    double mean = 0, variance = 0;
    for (long i = 0; i < c.D; i++) mean += x[i];
    mean /= c.D;
    for (long i = 0; i < c.D; i++) variance += (x[i] - mean) * (x[i] - mean);
    variance /= c.D;
    for (long i = 0; i < c.D; i++) out[i] = (x[i] - mean) / sqrt(variance + c.epsilon) * p.w[i] + p.b[i];
}

static double dot(const float *a, const float *b, long n) {
    double sum = 0;
    for (long i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

static void linear(float *out, const float *x, Pair p, long rows, long columns) {
    for (long i = 0; i < rows; i++) out[i] = dot(p.w + i * columns, x, columns) + (p.b ? p.b[i] : 0);
}

static double gelu(double x) { return 0.5 * x * (1 + tanh(0.79788456 * x * (1 + 0.044715 * x * x))); }

/* Powers of 2^(-8/n), n the largest power of two in H; then every other slope of 2 n heads (ALI-1, ALI-2). The nearest
 * float64 needs a pow that is correctly rounded here (ALI-3): glibc's is. */
static double slope(long h, long heads) {
    long n = 1;
    while (2 * n <= heads) n *= 2;
    return h < n ? pow(2, -8.0 * (h + 1) / n) : pow(2, -4.0 * (2 * (h - n) + 1) / n);
}

/* One head of one query at column t. The fused rows are head by head: query, key and value of each head. */
static void attend(float *out, const float *fused, const unsigned char *real, long t, long h, double *power) {
    long width = 3 * c.D, at = h * 3 * c.K;
    double largest = -INFINITY, total = 0;
    for (long s = 0; s <= t; s++) {
        if (!real[s]) continue;
        power[s] = dot(fused + t * width + at, fused + s * width + at + c.K, c.K) / sqrt(c.K) + slope(h, c.H) * (s - t);
        if (power[s] > largest) largest = power[s];
    }
    for (long s = 0; s <= t; s++) total += real[s] ? power[s] = exp(power[s] - largest) : 0;
    for (long k = 0; k < c.K; k++) {
        double sum = 0;
        for (long s = 0; s <= t; s++) sum += real[s] ? power[s] * fused[s * width + at + 2 * c.K + k] : 0;
        out[h * c.K + k] = sum / total;
    }
}

/* Columns start ... stop - 1 of one row; `caches` store the fused query, key and value of all columns, for each layer. */
static void forward(const int64_t *ids, const unsigned char *real, long time, long start, long stop, float *caches, float *hidden) {
    long D = c.D;
    float *normed = grab(D, 4), *context = grab(D, 4), *out = grab(D, 4), *inner = grab(c.F, 4);
    double *power = grab(time, 8);
    for (long t = start; t < stop; t++) {
        float *x = hidden + t * D;
        layer_norm(x, embedding + ids[t] * D, norm0);
        for (long i = 0; i < c.L; i++) {
            Layer *l = layers + i;
            float *fused = caches + i * time * 3 * D;
            layer_norm(normed, x, l->norm1);
            linear(fused + t * 3 * D, normed, l->qkv, 3 * D, D);
            for (long h = 0; real[t] && h < c.H; h++) attend(context, fused, real, t, h, power);
            linear(out, context, l->dense, D, D);
            for (long d = 0; d < D; d++) x[d] = (c.post_norm ? normed : x)[d] + out[d];
            layer_norm(normed, x, l->norm2);
            linear(inner, normed, l->up, c.F, D);
            for (long f = 0; f < c.F; f++) inner[f] = gelu(inner[f]);
            linear(out, inner, l->down, D, c.F);
            for (long d = 0; d < D; d++) x[d] = (c.post_norm ? normed : x)[d] + out[d];
        }
        memcpy(normed, x, 4 * D);
        layer_norm(x, normed, normf);
    }
    free(normed), free(context), free(out), free(inner), free(power);
}

static int run(const char *request, const char *what) {
    char path[4096], out[4096];
    File file = {0};
    long shape[2], ignored[2];
    if (!text(request, "inputs", path, sizeof path) || !text(request, "outputs", out, sizeof out)) return refuse("InvalidInput", "a path is missing");
    if (!layers) return refuse("InvalidInput", "no model is loaded");
    if (!open_file(&file, path)) return 0;
    int want_hidden = !strcmp(what, "hidden");
    const int64_t *ids = tensor(&file, "token_ids", shape);
    const unsigned char *real = tensor(&file, "is_real", ignored);
    if (!ids || !real) return close_file(&file), 0;
    long B = shape[0], T = shape[1];
    for (long i = 0; i < B * T; i++)
        if (ids[i] < 0 || ids[i] >= c.V) return close_file(&file), refuse("InvalidInput", "a token id is not in the vocabulary");
    float *hidden = grab(B * T * c.D, 4), *logits = grab(B * T * c.V, 4);
    for (long b = 0; b < B; b++) {
        float *caches = grab(c.L * T * 3 * c.D, 4);
        const char *cut = value_of(request, "cuts");
        for (long start = 0, stop; start < T; start = stop) { /* in_pieces: up to the next cut, finally T */
            char *end = NULL;
            long next = cut ? strtol(cut + 1, &end, 10) : T;
            int last = !cut || end == cut + 1;
            stop = last ? T : next, cut = last ? NULL : end;
            forward(ids + b * T, real + b * T, T, start, stop, caches, hidden + b * T * c.D);
        }
        free(caches);
    }
    for (long i = 0; i < B * T; i++) linear(logits + i * c.V, hidden + i * c.D, (Pair){head, NULL}, c.V, c.D);
    write_file(out, want_hidden ? "hidden" : "logits", B, T, want_hidden ? c.D : c.V, want_hidden ? hidden : logits);
    free(logits), free(hidden), close_file(&file);
    return !kind;
}

static void print_slopes(const char *request) {
    long heads = number(request, "num_heads", 0);
    printf("{\"output\": {\"float64\": [");
    for (long h = 0; h < heads; h++) printf("%s%.17g", h ? ", " : "", slope(h, heads));
    printf("], \"float32\": [");
    for (long h = 0; h < heads; h++) printf("%s%.17g", h ? ", " : "", (double)(float)slope(h, heads));
    puts("]}}");
}

int main(void) {
    static char line[1 << 16], what[50];
    while (fgets(line, sizeof line, stdin)) {
        kind = NULL;
        text(line, "request", what, sizeof what);
        if (!strcmp(what, "hello")) {
            puts("{\"protocol\": 1, \"name\": \"bloom.c\", \"versions\": {\"bloom.c\": \"1\"}, \"methods\": [\"logits\", \"hidden\", \"in_pieces\", \"slopes\"],"
                 " \"capabilities\": {\"dtypes\": [\"float32\"]}}");
        } else if (!strcmp(what, "slopes")) {
            print_slopes(line);
        } else if (!strcmp(what, "load") ? load(line)
                   : !strcmp(what, "logits") || !strcmp(what, "hidden") || !strcmp(what, "in_pieces") ? run(line, what)
                   : refuse("Unsupported", "no such request")) {
            puts("{}");
        } else {
            printf("{\"error\": {\"kind\": \"%s\", \"message\": \"%s\"}}\n", kind, refusal);
        }
        fflush(stdout);
    }
    return 0;
}
