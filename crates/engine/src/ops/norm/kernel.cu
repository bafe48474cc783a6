// RMSNorm: a group of d columns is normalised by a warp, or by a whole block where it is long.

__device__ __forceinline__ float weight_at(const void* w, int is_bf16, i64 i) {
    return is_bf16 ? to_f(((const bf16*)w)[i]) : ((const float*)w)[i];
}

template <bool BLOCK> __device__ __forceinline__ float sum_of(float x, float* shared) {
    return BLOCK ? block_sum(x, shared) : warp_sum(x);
}

template <class T, bool BLOCK>
__device__ void forward(T* y, float* rstd, const T* x, const void* w, int w_bf16, float offset, float eps, i64 groups, i64 d) {
    __shared__ float shared[33];
    const int N = Wide<T>::N;
    int lane = BLOCK ? threadIdx.x : threadIdx.x & 31, lanes = BLOCK ? blockDim.x : 32;
    i64 group = BLOCK ? blockIdx.x : blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (group >= groups) return;
    x += group * d, y += group * d;
    bool wide = is_wide(x) && is_wide(y);
    float sum = 0.f, v[N];
    for (i64 at = lane * N; at < d; at += lanes * N) {
        load(x + at, v, d - at, wide);
#pragma unroll
        for (int i = 0; i < N; i++) sum += v[i] * v[i];
    }
    float r = 1.f / sqrtf(sum_of<BLOCK>(sum, shared) / (float)d + eps);
    if (lane == 0) rstd[group] = r;
    for (i64 at = lane * N; at < d; at += lanes * N) {
        load(x + at, v, d - at, wide);
#pragma unroll
        for (int i = 0; i < N; i++)
            if (at + i < d) v[i] = v[i] * r * (offset + weight_at(w, w_bf16, at + i));
        store(y + at, v, d - at, wide);
    }
}

// dx = r·(dy∘c) − x·r³·mean(x∘dy∘c), plus what is in dx already if `add`.
template <class T, bool BLOCK>
__device__ void backward(T* dx, const T* dy, const T* x, const float* rstd, const void* w, int w_bf16, float offset, int add,
                         i64 groups, i64 d) {
    __shared__ float shared[33];
    const int N = Wide<T>::N;
    int lane = BLOCK ? threadIdx.x : threadIdx.x & 31, lanes = BLOCK ? blockDim.x : 32;
    i64 group = BLOCK ? blockIdx.x : blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (group >= groups) return;
    x += group * d, dy += group * d, dx += group * d;
    bool wide = is_wide(x) && is_wide(dy) && is_wide(dx);
    float sum = 0.f, v[N], g[N], old[N];
    for (i64 at = lane * N; at < d; at += lanes * N) {
        load(x + at, v, d - at, wide);
        load(dy + at, g, d - at, wide);
#pragma unroll
        for (int i = 0; i < N; i++)
            if (at + i < d) sum += v[i] * g[i] * (offset + weight_at(w, w_bf16, at + i));
    }
    float r = rstd[group], c = sum_of<BLOCK>(sum, shared) * r * r * r / (float)d;
    for (i64 at = lane * N; at < d; at += lanes * N) {
        load(x + at, v, d - at, wide);
        load(dy + at, g, d - at, wide);
        if (add) load((const T*)dx + at, old, d - at, wide);
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (at + i < d) v[i] = g[i] * (offset + weight_at(w, w_bf16, at + i)) * r - v[i] * c;
            if (add) v[i] += old[i];
        }
        store(dx + at, v, d - at, wide);
    }
}

#define NORM(T, t, BLOCK, by)                                                                                                  \
    extern "C" __global__ void forward_##by##_##t(T* y, float* rstd, const T* x, const void* w, int w_bf16, float offset,      \
                                                  float eps, i64 groups, i64 d) {                                              \
        forward<T, BLOCK>(y, rstd, x, w, w_bf16, offset, eps, groups, d);                                                      \
    }                                                                                                                          \
    extern "C" __global__ void backward_##by##_##t(T* dx, const T* dy, const T* x, const float* rstd, const void* w,           \
                                                   int w_bf16, float offset, int add, i64 groups, i64 d) {                     \
        backward<T, BLOCK>(dx, dy, x, rstd, w, w_bf16, offset, add, groups, d);                                                \
    }
NORM(float, f32, false, warp)
NORM(float, f32, true, block)
NORM(bf16, bf16, false, warp)
NORM(bf16, bf16, true, block)
