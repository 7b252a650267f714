// NCCL: each rank writes its part into a file, all meet at a counter that they share, and each reads the others' parts.
#include "fake.h"

typedef struct {
    int n, r; // ranks, and this one's number
    char dir[128];
    volatile long *ctl; // how often ranks have come, all together
    long seq;           // how often this one has
} Comm;
static const char *nccl_folder(void) {
    const char *f = getenv("FAKE_NCCL_FOLDER");
    return f ? f : "/dev/shm";
}
static int size_of(int t) {
    static int s[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
    return t < 12 ? s[t] : 4;
}
API int ncclGetVersion(int *v) {
    *v = 22809;
    return 0;
}
API int ncclGetUniqueId(void *id) {
    int f = open("/dev/urandom", 0);
    read(f, id, 128);
    close(f);
    return 0;
}
typedef struct {
    char b[128];
} UniqueId;
static Comm *opened(Comm *k) {
    char path[160];
    mkdir(k->dir, 0700);
    snprintf(path, 160, "%s/ctl", k->dir);
    int file = open(path, O_RDWR | O_CREAT, 0600);
    ftruncate(file, 4096);
    k->ctl = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return k;
}
static int join(void **c, int n, const void *id, int r) {
    Comm *k = calloc(1, sizeof *k);
    k->n = n;
    k->r = r;
    uint64_t h = 1469598103934665603ull;
    for (int i = 0; i < 128; i++) h = (h ^ ((unsigned char *)id)[i]) * 1099511628211ull;
    snprintf(k->dir, 128, "%s/%016lx", nccl_folder(), (unsigned long)h);
    *c = opened(k);
    return 0;
}
API int ncclCommInitRank(void **c, int n, UniqueId id, int r) { return join(c, n, &id, r); }
API int ncclCommInitRankConfig(void **c, int n, UniqueId id, int r, void *cf) { return join(c, n, &id, r); }
API int ncclCommInitRankScalable(void **c, int n, int r, int k, void *id, void *cf) { return join(c, n, id, r); }
API int ncclCommDestroy(void *c) { return 0; }
API int ncclCommAbort(void *c) { return 0; }
API int ncclCommFinalize(void *c) { return 0; }
API int ncclCommCount(void *c, int *n) {
    *n = ((Comm *)c)->n;
    return 0;
}
API int ncclCommUserRank(void *c, int *r) {
    *r = ((Comm *)c)->r;
    return 0;
}
API int ncclCommGetAsyncError(void *c, int *e) {
    *e = 0;
    return 0;
}
API const char *ncclGetErrorString(int e) { return "fake nccl"; }
API const char *ncclGetLastError(void *c) { return ""; }
API int ncclGroupStart(void) { return 0; }
API int ncclGroupEnd(void) { return 0; }
API int ncclCommRegister(void *c, void *b, size_t n, void **h) {
    *h = (void *)1;
    return 0;
}
API int ncclCommDeregister(void *c, void *h) { return 0; }
API int ncclMemAlloc(void **p, size_t n) { return cudaMalloc(p, n); }
API int ncclMemFree(void *p) { return cudaFree(p); }
// Return when all ranks are here.
static void meet(Comm *k) {
    long until = (long)k->n * (++k->seq);
    __sync_fetch_and_add(k->ctl, 1);
    int i = 0;
    while (*k->ctl < until) {
        if (++i > 1000) usleep(50);
        if (i > 2400000) {
            fprintf(stderr, "fake nccl: rank %d waits for ever\n", k->r);
            i = 1000;
        }
    }
}
static void put(Comm *k, const void *s, size_t bytes) {
    char p[160];
    snprintf(p, 160, "%s/r%d", k->dir, k->r);
    int f = open(p, O_RDWR | O_CREAT | O_TRUNC, 0600);
    size_t o = 0;
    while (o < bytes) {
        ssize_t w = write(f, (char *)s + o, bytes - o);
        if (w <= 0) break;
        o += w;
    }
    close(f);
}
static void get(Comm *k, int r, void *d, size_t off, size_t bytes) {
    char p[160];
    snprintf(p, 160, "%s/r%d", k->dir, r);
    int f = open(p, O_RDONLY);
    size_t o = 0;
    while (o < bytes) {
        ssize_t w = pread(f, (char *)d + o, bytes - o, off + o);
        if (w <= 0) break;
        o += w;
    }
    close(f);
}
static float from_half(uint16_t h) {
    unsigned s = h >> 15, e = (h >> 10) & 31, m = h & 1023;
    float v = e == 0 ? ldexpf(m, -24) : e == 31 ? (m ? NAN : INFINITY) : ldexpf(m + 1024, e - 25);
    return s ? -v : v;
}
static uint16_t to_half(float f) {
    _Float16 x = f;
    uint16_t u;
    memcpy(&u, &x, 2);
    return u;
}
static float from_bfloat(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static uint16_t to_bfloat(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}
// Numbers of NCCL's types, which are int8, uint8, int32, uint32, int64, uint64, half, float, double, bfloat16, fp8,
// fp8.
static double load(const char *p, size_t i, int t) {
    switch (t) {
    case 0: return ((int8_t *)p)[i];
    case 1: return ((uint8_t *)p)[i];
    case 2: return ((int32_t *)p)[i];
    case 3: return ((uint32_t *)p)[i];
    case 6: return from_half(((uint16_t *)p)[i]);
    case 7: return ((float *)p)[i];
    case 8: return ((double *)p)[i];
    case 9: return from_bfloat(((uint16_t *)p)[i]);
    }
    return 0;
}
static void store(char *p, size_t i, int t, double v) {
    switch (t) {
    case 0: ((int8_t *)p)[i] = v; break;
    case 1: ((uint8_t *)p)[i] = v; break;
    case 2: ((int32_t *)p)[i] = v; break;
    case 3: ((uint32_t *)p)[i] = v; break;
    case 6: ((uint16_t *)p)[i] = to_half(v); break;
    case 7: ((float *)p)[i] = v; break;
    case 8: ((double *)p)[i] = v; break;
    case 9: ((uint16_t *)p)[i] = to_bfloat(v); break;
    }
}
enum { SUM, PROD, MAX, MIN, AVG };
static void reduce(Comm *k, char *d, size_t off, size_t n, int t, int op) {
    int z = size_of(t);
    char *b = malloc(n * z + 8);
    double *acc = t == 4 || t == 5 ? NULL : malloc(n * 8 + 8);
    int64_t *ai = t == 4 || t == 5 ? malloc(n * 8 + 8) : NULL;
    for (int r = 0; r < k->n; r++) {
        get(k, r, b, off * z, n * z);
        for (size_t i = 0; i < n; i++) {
            if (ai) {
                int64_t v = ((int64_t *)b)[i];
                ai[i] = r == 0      ? v
                        : op == MAX ? (v > ai[i] ? v : ai[i])
                        : op == MIN ? (v < ai[i] ? v : ai[i])
                                    : ai[i] + v;
            } else {
                double v = load(b, i, t);
                acc[i] = r == 0       ? v
                         : op == MAX  ? (v > acc[i] ? v : acc[i])
                         : op == MIN  ? (v < acc[i] ? v : acc[i])
                         : op == PROD ? acc[i] * v
                                      : acc[i] + v;
            }
        }
    }
    for (size_t i = 0; i < n; i++) {
        if (ai)
            ((int64_t *)d)[i] = ai[i];
        else
            store(d, i, t, op == AVG ? acc[i] / k->n : acc[i]);
    }
    free(b);
    free(acc);
    free(ai);
}
API int ncclCommSplit(void *c, int color, int key, void **o, void *cf) {
    Comm *k = c;
    int me[3] = {color, key, k->r};
    put(k, me, sizeof me);
    meet(k);
    int n = 0, r = 0;
    for (int i = 0; i < k->n; i++) {
        int t[3];
        get(k, i, t, 0, sizeof t);
        if (t[0] == color) {
            n++;
            if (t[1] < key || (t[1] == key && t[2] < k->r)) r++;
        }
    }
    long q = k->seq;
    meet(k);
    if (color < 0) {
        *o = NULL;
        return 0;
    }
    Comm *z = calloc(1, sizeof *z);
    z->n = n;
    z->r = r;
    snprintf(z->dir, 128, "%.100s-%ld-%d", k->dir, q, color);
    *o = opened(z);
    return 0;
}
// Arguments as NCCL names them: sendbuff, recvbuff (d: where to), count (n), datatype, op, root, comm, stream. Nothing is
// queued in the stream: what a collective returns is done.
static int alone(void *d, const void *s, size_t n, int t) {
    if (s != d) copy_bytes(d, s, n * size_of(t));
    return 0;
}
API int ncclAllReduce(const void *s, void *d, size_t n, int t, int op, void *c, void *st) {
    count(COLLECTIVE, n);
    Comm *k = c;
    if (k->n == 1) return alone(d, s, n, t);
    put(k, s, n * size_of(t));
    meet(k);
    reduce(k, d, 0, n, t, op);
    meet(k);
    return 0;
}
API int ncclReduce(const void *s, void *d, size_t n, int t, int op, int root, void *c, void *st) {
    count(COLLECTIVE, n);
    Comm *k = c;
    if (k->n == 1) return alone(d, s, n, t);
    put(k, s, n * size_of(t));
    meet(k);
    if (k->r == root) reduce(k, d, 0, n, t, op);
    meet(k);
    return 0;
}
API int ncclBroadcast(const void *s, void *d, size_t n, int t, int root, void *c, void *st) {
    count(COLLECTIVE, n);
    Comm *k = c;
    if (k->n == 1) return alone(d, s, n, t);
    if (k->r == root) put(k, s, n * size_of(t));
    meet(k);
    if (k->r != root)
        get(k, root, d, 0, n * size_of(t));
    else if (s != d)
        copy_bytes(d, s, n * size_of(t));
    meet(k);
    return 0;
}
API int ncclBcast(void *d, size_t n, int t, int root, void *c, void *st) {
    return ncclBroadcast(d, d, n, t, root, c, st);
}
API int ncclAllGather(const void *s, void *d, size_t n, int t, void *c, void *st) {
    count(COLLECTIVE, n);
    Comm *k = c;
    size_t z = n * size_of(t);
    if (k->n == 1) return alone(d, s, n, t);
    put(k, s, z);
    meet(k);
    for (int r = 0; r < k->n; r++) get(k, r, (char *)d + r * z, 0, z);
    meet(k);
    return 0;
}
API int ncclReduceScatter(const void *s, void *d, size_t n, int t, int op, void *c, void *st) {
    count(COLLECTIVE, n);
    Comm *k = c;
    if (k->n == 1) return alone(d, s, n, t);
    put(k, s, n * size_of(t) * k->n);
    meet(k);
    reduce(k, d, (size_t)k->r * n, n, t, op);
    meet(k);
    return 0;
}
static int unsupported(const char *name) {
    fprintf(stderr, "fake nccl: %s is not there\n", name);
    return 5; // ncclInvalidUsage
}
API int ncclSend(const void *s, size_t n, int t, int p, void *c, void *st) { return unsupported("ncclSend"); }
API int ncclRecv(void *s, size_t n, int t, int p, void *c, void *st) { return unsupported("ncclRecv"); }
API int ncclAlltoAll(const void *s, void *d, size_t n, int t, void *c, void *st) { return unsupported("ncclAlltoAll"); }
API int ncclRedOpCreatePreMulSum(int *o, void *s, int t, int r, void *c) { return unsupported("PreMulSum"); }
API int ncclRedOpDestroy(int o, void *c) { return 0; }
