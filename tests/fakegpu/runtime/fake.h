// What the parts of the fake GPU share. Together they stand in (LD_PRELOAD) for CUDA's runtime (cudart.c), NCCL
// (nccl.c), cuBLAS and cuDNN (libraries.c); stubs.py adds the functions that need do nothing.
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))

// What the host asks of the device, counted. Those from STREAM_SYNC to D2H_PAGEABLE may keep the host waiting.
enum {
    STREAM_SYNC,
    DEVICE_SYNC,
    EVENT_SYNC,
    MEMCPY_SYNC,
    H2D_PAGEABLE,
    D2H_PAGEABLE,
    H2D_PINNED,
    D2H_PINNED,
    D2D,
    LAUNCH,
    MATMUL,
    COLLECTIVE,
    NUM_EVENTS
};
void count(int event, size_t bytes);

// Copies between host and device; may be told to leave large ones out (FAKE_SKIP_COPY_ABOVE, in bytes).
void copy_bytes(void *to, const void *from, size_t bytes);
