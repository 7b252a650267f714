// cuBLAS and cuDNN: what their callers ask is answered, what they compute is left out (cpuops.cpp may do it instead).
#include "fake.h"

static int made(void **handle, size_t bytes) {
    *handle = calloc(1, bytes);
    return 0;
}

// ---- cuBLAS

API int cublasCreate_v2(void **handle) { return made(handle, 64); }
API int cublasGetMathMode(void *handle, int *mode) { return *mode = 0; }
API int cublasGetPointerMode_v2(void *handle, int *mode) { return *mode = 0; }
API size_t cublasLtGetVersion(void) { return 130100; }
API int cublasLtMatmulDescCreate(void **descriptor, int compute, int type) { return made(descriptor, 64); }
API int cublasLtMatmulPreferenceCreate(void **preference) { return made(preference, 64); }
API int cublasLtMatrixLayoutCreate(void **layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    return made(layout, 64);
}
API int cublasLtMatmulAlgoGetHeuristic(void *handle, void *matmul, void *a, void *b, void *c, void *d, void *preference,
                                       int most, void *results, int *found) {
    memset(results, 0, 64);
    *found = 1;
    return 0;
}

// ---- cuDNN, of which LSTMs need to know where their weights lie

API int cudnnCreate(void **handle) { return made(handle, 64); }
API size_t cudnnGetVersion(void) { return 91900; }
API int cudnnGetProperty(int which, int *value) {
    *value = which == 0 ? 9 : which == 1 ? 19 : 0;
    return 0;
}
API size_t cudnnGetCudartVersion(void) { return 13000; }
API const char *cudnnGetErrorString(int error) { return "fake cudnn"; }
API int cudnnBackendCreateDescriptor(int type, void **descriptor) { return made(descriptor, 64); }

typedef struct {
    int type, input_size, hidden_size, num_layers;
} Rnn;
typedef struct {
    int num_dims, type, dims[8];
} TensorShape;

static int bytes_of_type(int type) { return type == 0 ? 4 : type == 1 ? 8 : 2; } // float, double, others

// An LSTM's layer: four gates' input weights, their recurrent weights; after all layers the biases.
static size_t weights_of_layer(const Rnn *rnn, int layer) {
    return 4ul * rnn->hidden_size * ((layer ? rnn->hidden_size : rnn->input_size) + rnn->hidden_size);
}
static size_t weights_before(const Rnn *rnn, int layer) {
    size_t numbers = 0;
    for (int i = 0; i < layer; i++) numbers += weights_of_layer(rnn, i);
    return numbers;
}
API int cudnnSetRNNDescriptor_v8(Rnn *rnn, int algorithm, int cell, int bias, int direction, int input_mode, int type,
                                 int math_precision, int math_type, int input_size, int hidden_size, int projection,
                                 int num_layers, void *dropout, unsigned flags) {
    *rnn = (Rnn){type, input_size, hidden_size, num_layers};
    return 0;
}
API int cudnnGetRNNWeightSpaceSize(void *handle, Rnn *rnn, size_t *bytes) {
    size_t biases = 8ul * rnn->hidden_size * rnn->num_layers;
    *bytes = (weights_before(rnn, rnn->num_layers) + biases) * bytes_of_type(rnn->type);
    return 0;
}
API int cudnnGetRNNTempSpaceSizes(void *handle, void *rnn, int mode, void *input, size_t *work, size_t *reserve) {
    if (work) *work = 1024;
    if (reserve) *reserve = 4096;
    return 0;
}
API int cudnnGetRNNWeightParams(void *handle, Rnn *rnn, int layer, size_t bytes, char *space, int gate,
                                TensorShape *matrix, void **matrix_start, TensorShape *bias, void **bias_start) {
    int size = bytes_of_type(rnn->type), hidden = rnn->hidden_size, input = layer ? hidden : rnn->input_size;
    int is_recurrent = gate >= 4;
    size_t before =
        is_recurrent ? 4ul * hidden * input + (size_t)(gate - 4) * hidden * hidden : (size_t)gate * hidden * input;
    size_t bias_before = weights_before(rnn, rnn->num_layers) + 8ul * hidden * layer + (size_t)gate * hidden;
    if (matrix_start) *matrix_start = space + (weights_before(rnn, layer) + before) * size;
    if (bias_start) *bias_start = space + bias_before * size;
    if (matrix) *matrix = (TensorShape){3, rnn->type, {1, hidden, is_recurrent ? hidden : input}};
    if (bias) *bias = (TensorShape){3, rnn->type, {1, hidden, 1}};
    return 0;
}
API int cudnnGetTensorNdDescriptor(TensorShape *shape, int most, int *type, int *num_dims, int *dims, int *strides) {
    if (type) *type = shape->type;
    if (num_dims) *num_dims = shape->num_dims;
    for (int i = shape->num_dims - 1, stride = 1; i >= 0; stride *= shape->dims[i--]) {
        if (i < most && dims) dims[i] = shape->dims[i];
        if (i < most && strides) strides[i] = stride;
    }
    return 0;
}

#include "stubs.h"
