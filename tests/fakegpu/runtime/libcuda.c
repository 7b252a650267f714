// CUDA's driver, as far as torch loads it by name.
#define API __attribute__((visibility("default")))

API int cuInit(unsigned flags) { return 0; }
API int cuDriverGetVersion(int *version) {
    *version = 13000;
    return 0;
}
API int cuDeviceGetCount(int *number) {
    *number = 1;
    return 0;
}
API int cuDeviceGet(int *device, int number) {
    *device = number;
    return 0;
}
API int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *is_active) {
    *flags = 0;
    *is_active = 1;
    return 0;
}
API int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = (void *)1;
    return 0;
}
API int cuCtxGetCurrent(void **context) {
    *context = (void *)1;
    return 0;
}
API int cuGetErrorString(int error, const char **words) {
    *words = "fake";
    return 0;
}

#include "driver_stubs.h"
