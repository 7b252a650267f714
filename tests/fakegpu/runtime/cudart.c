// CUDA's runtime: device memory is host memory that is mapped when it is touched, kernels do nothing, all is done at
// once.
#include "fake.h"

static int env_int(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value && *value ? atoi(value) : otherwise;
}
static double env_double(const char *name, double otherwise) {
    const char *value = getenv(name);
    return value && *value ? atof(value) : otherwise;
}
static size_t env_gib(const char *name, double otherwise) {
    return (size_t)(env_double(name, otherwise) * 1073741824.0);
}

// ---- counting

static const char *event_names[] = {"stream_sync",  "device_sync",  "event_sync", "memcpy_sync",
                                    "h2d_pageable", "d2h_pageable", "h2d_pinned", "d2h_pinned",
                                    "d2d",          "launch",       "matmul",     "collective"};
static long long counts[NUM_EVENTS];
typedef void (*Hook)(const char *event, size_t bytes);
static Hook hook;
static __thread int in_hook;

// Have a function called, in the thread that does it, at all that may keep the host waiting.
API void fakecuda_set_hook(Hook called) { hook = called; }
API long long fakecuda_count(int event) { return event < NUM_EVENTS ? counts[event] : -1; }
API const char *fakecuda_name(int event) { return event < NUM_EVENTS ? event_names[event] : NULL; }

void count(int event, size_t bytes) {
    __sync_fetch_and_add(&counts[event], 1);
    if (hook && !in_hook && event <= D2H_PAGEABLE) {
        in_hook = 1;
        hook(event_names[event], bytes);
        in_hook = 0;
    }
}

// ---- memory
enum { PAGEABLE, PINNED, DEVICE };
typedef struct {
    char *start;
    size_t bytes;
    int kind; // memory of no block is pageable
    int device;
} Block;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Block *blocks;
static int num_blocks, capacity;
static size_t used[16];
static __thread int current_device;
static int num_devices(void) {
    static int n = -1;
    if (n < 0) n = env_int("FAKE_GPUS", 1);
    return n;
}
static size_t bytes_of_device(void) { return env_gib("FAKE_GPU_GIB", 79.2); }
static void add_block(char *start, size_t bytes, int kind) {
    pthread_mutex_lock(&mutex);
    if (num_blocks == capacity) {
        capacity = capacity ? 2 * capacity : 1024;
        blocks = realloc(blocks, capacity * sizeof(Block));
    }
    blocks[num_blocks++] = (Block){start, bytes, kind, current_device};
    if (kind == DEVICE) used[current_device] += bytes;
    pthread_mutex_unlock(&mutex);
}
static Block block_of(const void *address) {
    Block found = {0};
    pthread_mutex_lock(&mutex);
    for (int i = num_blocks - 1; i >= 0; i--)
        if ((char *)address >= blocks[i].start && (char *)address < blocks[i].start + blocks[i].bytes) {
            found = blocks[i];
            break;
        }
    pthread_mutex_unlock(&mutex);
    return found;
}
static int remove_block(void *start, Block *removed) {
    int found = 0;
    pthread_mutex_lock(&mutex);
    for (int i = num_blocks - 1; i >= 0 && !found; i--)
        if (blocks[i].start == start) {
            *removed = blocks[i];
            if (blocks[i].kind == DEVICE) used[blocks[i].device] -= blocks[i].bytes;
            blocks[i] = blocks[--num_blocks];
            found = 1;
        }
    pthread_mutex_unlock(&mutex);
    return found;
}
static __thread cudaError_t last_error;
static cudaError_t failed(cudaError_t error) { return last_error = error; }

static cudaError_t allocate(void **start, size_t bytes, int kind) {
    char *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return failed(cudaErrorMemoryAllocation);
    add_block(mapped, bytes, kind);
    *start = mapped;
    return 0;
}
static cudaError_t release(void *start) {
    Block block;
    if (start && remove_block(start, &block)) munmap(block.start, block.bytes);
    return 0;
}
static size_t whole_pages(size_t bytes) { return (bytes + 4095) & ~4095ul; }

API cudaError_t cudaMalloc(void **start, size_t bytes) {
    *start = NULL;
    if (!bytes) return 0;
    bytes = whole_pages(bytes);
    if (used[current_device] + bytes + env_gib("FAKE_GPU_CONTEXT_GIB", 0.5) > bytes_of_device())
        return failed(cudaErrorMemoryAllocation);
    return allocate(start, bytes, DEVICE);
}
API cudaError_t cudaFree(void *start) { return release(start); }
API cudaError_t cudaHostAlloc(void **start, size_t bytes, unsigned flags) {
    return allocate(start, whole_pages(bytes ? bytes : 1), PINNED);
}
API cudaError_t cudaFreeHost(void *start) { return release(start); }
API cudaError_t cudaHostRegister(void *start, size_t bytes, unsigned flags) {
    add_block(start, bytes, PINNED);
    return 0;
}
API cudaError_t cudaHostUnregister(void *start) {
    Block block;
    remove_block(start, &block);
    return 0;
}
API cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    *total = bytes_of_device();
    *free = *total - used[current_device] - env_gib("FAKE_GPU_CONTEXT_GIB", 0.5);
    return 0;
}
API cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *address) {
    static const int types[] = {cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice};
    memset(a, 0, sizeof *a);
    Block block = block_of(address);
    a->type = types[block.kind];
    a->device = block.device;
    a->devicePointer = block.kind == PAGEABLE ? NULL : (void *)address;
    a->hostPointer = block.kind == PINNED ? (void *)address : NULL;
    return 0;
}

static int is_skipped(size_t bytes) {
    static double limit = -1;
    if (limit < 0) limit = env_double("FAKE_SKIP_COPY_ABOVE", 1e18);
    return bytes > limit;
}
// Without arithmetic a number that the host reads is zero, and not what happens to lie there.
static int reads_zeros(void) {
    static int answer = -1;
    if (answer < 0) answer = env_int("FAKE_OPS", 0) == 0;
    return answer;
}
void copy_bytes(void *to, const void *from, size_t bytes) {
    if (bytes <= 8 && reads_zeros() && block_of(from).kind == DEVICE && block_of(to).kind != DEVICE)
        memset(to, 0, bytes);
    else if (!is_skipped(bytes))
        memmove(to, from, bytes);
}
static void count_copy(const void *to, const void *from, size_t bytes) {
    int into = block_of(to).kind, out_of = block_of(from).kind;
    if (into == DEVICE && out_of == DEVICE)
        count(D2D, bytes);
    else if (into == DEVICE)
        count(out_of == PINNED ? H2D_PINNED : H2D_PAGEABLE, bytes);
    else if (out_of == DEVICE)
        count(into == PINNED ? D2H_PINNED : D2H_PAGEABLE, bytes);
}
API cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t s) {
    count_copy(to, from, n);
    copy_bytes(to, from, n);
    return 0;
}
API cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind) {
    count(MEMCPY_SYNC, n);
    return cudaMemcpyAsync(to, from, n, kind, NULL);
}
API cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int device, size_t n, cudaStream_t s) {
    copy_bytes(to, from, n);
    return 0;
}
API cudaError_t cudaMemcpyToSymbol(const void *to, const void *from, size_t n, size_t at, enum cudaMemcpyKind kind) {
    return 0;
}
API cudaError_t cudaMemset(void *start, int value, size_t bytes) {
    if (!is_skipped(bytes)) memset(start, value, bytes);
    return 0;
}
API cudaError_t cudaMemsetAsync(void *start, int value, size_t bytes, cudaStream_t s) {
    return cudaMemset(start, value, bytes);
}
API cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
    static char memory[1 << 16];
    *address = memory;
    return 0;
}

// ---- devices: H100s, as torch sees them
API cudaError_t cudaGetDeviceCount(int *n) {
    *n = num_devices();
    return *n ? 0 : failed(cudaErrorNoDevice);
}
API cudaError_t cudaGetDevice(int *d) {
    *d = current_device;
    return 0;
}
API cudaError_t cudaSetDevice(int d) {
    if (d < 0 || d >= num_devices()) return failed(cudaErrorInvalidDevice);
    current_device = d;
    return 0;
}
API cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
    memset(p, 0, sizeof *p);
    const char *nm = getenv("FAKE_GPU_NAME");
    strcpy(p->name, nm ? nm : "NVIDIA H100 80GB HBM3");
    int cc = env_int("FAKE_GPU_CC", 90);
    p->major = cc / 10;
    p->minor = cc % 10;
    p->totalGlobalMem = bytes_of_device();
    p->sharedMemPerBlock = 49152;
    p->regsPerBlock = 65536;
    p->warpSize = 32;
    p->memPitch = 2147483647;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsDim[0] = 1024;
    p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = 65535;
    p->maxGridSize[2] = 65535;
    p->totalConstMem = 65536;
    p->textureAlignment = 512;
    p->texturePitchAlignment = 32;
    p->multiProcessorCount = 132;
    p->canMapHostMemory = 1;
    p->concurrentKernels = 1;
    p->ECCEnabled = 1;
    p->pciBusID = d + 1;
    p->asyncEngineCount = 3;
    p->unifiedAddressing = 1;
    p->memoryBusWidth = 5120;
    p->l2CacheSize = 52428800;
    p->maxThreadsPerMultiProcessor = 2048;
    p->streamPrioritiesSupported = 1;
    p->globalL1CacheSupported = 1;
    p->localL1CacheSupported = 1;
    p->sharedMemPerMultiprocessor = 233472;
    p->regsPerMultiprocessor = 65536;
    p->managedMemory = 1;
    p->sharedMemPerBlockOptin = 232448;
    p->maxBlocksPerMultiProcessor = 32;
    p->reservedSharedMemPerBlock = 1024;
    p->cooperativeLaunch = 1;
    p->hostRegisterSupported = 1;
    p->memoryPoolsSupported = 1;
    p->clusterLaunch = 1;
    memcpy(p->uuid.bytes, "FAKEGPU-00000000", 16);
    p->uuid.bytes[15] = d;
    return 0;
}
API cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) {
    struct cudaDeviceProp p;
    cudaGetDeviceProperties(&p, d);
    switch (a) {
    case cudaDevAttrMultiProcessorCount: *v = 132; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = 232448; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break;
    case cudaDevAttrComputeCapabilityMajor: *v = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *v = p.minor; break;
    case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = 2048; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMaxGridDimX: *v = 2147483647; break;
    case cudaDevAttrMaxGridDimY: *v = 65535; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *v = 233472; break;
    case cudaDevAttrCooperativeLaunch: *v = 1; break;
    default: *v = 0;
    }
    return 0;
}
API cudaError_t cudaDeviceGetPCIBusId(char *b, int n, int d) {
    snprintf(b, n, "0000:%02x:00.0", d + 1);
    return 0;
}
API cudaError_t cudaDeviceCanAccessPeer(int *c, int a, int b) {
    *c = a != b;
    return 0;
}
API cudaError_t cudaDeviceEnablePeerAccess(int a, unsigned f) { return 0; }
API cudaError_t cudaDeviceGetStreamPriorityRange(int *l, int *g) {
    if (l) *l = 0;
    if (g) *g = -5;
    return 0;
}
API cudaError_t cudaDeviceSynchronize(void) {
    count(DEVICE_SYNC, 0);
    return 0;
}
API cudaError_t cudaDriverGetVersion(int *v) {
    *v = 13000;
    return 0;
}
API cudaError_t cudaRuntimeGetVersion(int *v) {
    *v = 13000;
    return 0;
}
API cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *p, int d) {
    *p = (void *)1;
    return 0;
}
API cudaError_t cudaGetLastError(void) {
    cudaError_t e = last_error;
    last_error = 0;
    return e;
}
API cudaError_t cudaPeekAtLastError(void) { return last_error; }
API const char *cudaGetErrorString(cudaError_t e) {
    return e == cudaErrorMemoryAllocation ? "out of memory"
           : e == cudaErrorInvalidDevice  ? "invalid device ordinal"
           : e                            ? "fake error"
                                          : "no error";
}
API const char *cudaGetErrorName(cudaError_t e) {
    return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorFake";
}
static int answer_zero(void) { return 0; }
static int primary_context_is_active(int d, unsigned *f, int *a) {
    if (f) *f = 0;
    if (a) *a = 1;
    return 0;
}
API cudaError_t cudaGetDriverEntryPointByVersion(const char *s, void **f, unsigned v, unsigned long long fl,
                                                 enum cudaDriverEntryPointQueryResult *r) {
    *f = strcmp(s, "cuDevicePrimaryCtxGetState") ? (void *)answer_zero : (void *)primary_context_is_active;
    if (r) *r = cudaDriverEntryPointSuccess;
    return 0;
}
API cudaError_t cudaGetDriverEntryPoint(const char *s, void **f, unsigned long long fl,
                                        enum cudaDriverEntryPointQueryResult *r) {
    return cudaGetDriverEntryPointByVersion(s, f, 0, fl, r);
}

// ---- streams and events: all is done already
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) {
    *s = malloc(16);
    return 0;
}
API cudaError_t cudaStreamCreate(cudaStream_t *s) {
    *s = malloc(16);
    return 0;
}
API cudaError_t cudaStreamDestroy(cudaStream_t s) { return 0; }
API cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    count(STREAM_SYNC, 0);
    return 0;
}
API cudaError_t cudaStreamQuery(cudaStream_t s) { return 0; }
API cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) { return 0; }
API cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) {
    *p = 0;
    return 0;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *c) {
    *c = 0;
    return 0;
}
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *c, unsigned long long *i,
                                         cudaGraph_t *g, const cudaGraphNode_t **d, const cudaGraphEdgeData **e,
                                         size_t *n) {
    *c = 0;
    if (i) *i = 0;
    return 0;
}
API cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m) { return 0; }
API cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void *u, unsigned fl) {
    f(s, 0, u);
    return 0;
}
API cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *u) {
    f(u);
    return 0;
}
API cudaError_t cudaEventCreate(cudaEvent_t *e) {
    *e = malloc(16);
    return 0;
}
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) {
    *e = malloc(16);
    return 0;
}
API cudaError_t cudaEventDestroy(cudaEvent_t e) {
    free(e);
    return 0;
}
API cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return 0; }
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) { return 0; }
API cudaError_t cudaEventQuery(cudaEvent_t e) { return 0; }
API cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    count(EVENT_SYNC, 0);
    return 0;
}
API cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
    *ms = 1;
    return 0;
}
API cudaError_t cudaProfilerStart(void) { return 0; }
API cudaError_t cudaProfilerStop(void) { return 0; }

// ---- kernels: counted and not run
static __thread struct {
    dim3 g, b;
    size_t s;
    void *st;
} pushed[16];
static __thread int num_pushed;
API unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t s, struct CUstream_st *st) {
    if (num_pushed < 16) {
        pushed[num_pushed].g = g;
        pushed[num_pushed].b = b;
        pushed[num_pushed].s = s;
        pushed[num_pushed].st = st;
    }
    num_pushed++;
    return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3 *g, dim3 *b, size_t *s, void *st) {
    num_pushed--;
    if (num_pushed < 16) {
        *g = pushed[num_pushed].g;
        *b = pushed[num_pushed].b;
        *s = pushed[num_pushed].s;
        *(void **)st = pushed[num_pushed].st;
    }
    return 0;
}
API cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *f) {
    *k = (void *)f;
    return 0;
}
static cudaError_t check_grid(dim3 g, dim3 b) {
    return (!g.x || !g.y || !g.z || !b.x || b.x * b.y * b.z > 1024 || g.y > 65535 || g.z > 65535)
               ? failed(cudaErrorInvalidConfiguration)
               : 0;
}
API cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void **a, size_t s, cudaStream_t st) {
    count(LAUNCH, 0);
    return check_grid(g, b);
}
API cudaError_t cudaLaunchKernel(const void *k, dim3 g, dim3 b, void **a, size_t s, cudaStream_t st) {
    count(LAUNCH, 0);
    return check_grid(g, b);
}
API cudaError_t cudaLaunchCooperativeKernel(const void *k, dim3 g, dim3 b, void **a, size_t s, cudaStream_t st) {
    count(LAUNCH, 0);
    return check_grid(g, b);
}
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) {
    count(LAUNCH, 0);
    return 0;
}
API cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 32;
    a->binaryVersion = 90;
    a->ptxVersion = 90;
    return 0;
}
API cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int v) { return 0; }
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s,
                                                                       unsigned fl) {
    *n = 2;
    return 0;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int b, size_t s) {
    *n = 2;
    return 0;
}
