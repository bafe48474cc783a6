// Rows of a table by token id, and the gradient of the table.

template <class T, class W> __device__ void forward(T* y, const W* table, const u32* ids, float scale, i64 tokens, i64 d) {
    for (i64 token = blockIdx.x; token < tokens; token += gridDim.x) {
        const W* row = table + (i64)ids[token] * d;
        for (i64 i = threadIdx.x; i < d; i += blockDim.x) y[token * d + i] = from_f<T>(to_f(row[i]) * scale);
    }
}

// The first token of each id sums over all tokens of that id, in their order; `table` is zeros.
template <class T> __device__ void backward(float* table, const T* dy, const u32* ids, float scale, i64 padding, i64 tokens, i64 d) {
    __shared__ int earlier;
    i64 token = blockIdx.x;
    u32 id = ids[token];
    if ((i64)id == padding) return;
    if (threadIdx.x == 0) earlier = 0;
    __syncthreads();
    for (i64 i = threadIdx.x; i < token; i += blockDim.x)
        if (ids[i] == id) earlier = 1;
    __syncthreads();
    if (earlier) return;
    for (i64 i = threadIdx.x; i < d; i += blockDim.x) {
        float sum = 0.f;
        for (i64 other = token; other < tokens; other++)
            if (ids[other] == id) sum += to_f(dy[other * d + i]) * scale;
        table[(i64)id * d + i] = sum;
    }
}

#define EMBEDDING(T, t)                                                                                                        \
    extern "C" __global__ void forward_##t##_f32(T* y, const float* table, const u32* ids, float scale, i64 tokens, i64 d) {   \
        forward(y, table, ids, scale, tokens, d);                                                                              \
    }                                                                                                                          \
    extern "C" __global__ void forward_##t##_bf16(T* y, const bf16* table, const u32* ids, float scale, i64 tokens, i64 d) {   \
        forward(y, table, ids, scale, tokens, d);                                                                              \
    }                                                                                                                          \
    extern "C" __global__ void backward_##t(float* table, const T* dy, const u32* ids, float scale, i64 padding, i64 tokens,   \
                                            i64 d) {                                                                           \
        backward(table, dy, ids, scale, padding, tokens, d);                                                                   \
    }
EMBEDDING(float, f32)
EMBEDDING(bf16, bf16)
