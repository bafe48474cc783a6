// Attention a query (or, for the gradients of k and v, a key) a warp: for f32, and for head sizes that the tiled kernels don't
// take. `first` and `end` are the bounds of each token's document.

#define ROWS 16  // Of 32 elements: heads of up to 512.

struct Shape {
    i64 tokens, heads, kv_heads, dim;
    float scale, cap;
    i64 window;
};

__device__ __forceinline__ float capped(float s, const Shape& o) { return o.cap > 0.f ? soft_cap(s, o.cap) : s; }

template <class T> __device__ __forceinline__ float dot(const float* a, const T* b, i64 n) {
    float sum = 0.f;
    for (i64 i = 0; i < n; i++) sum += a[i] * to_f(b[i]);
    return sum;
}

template <class T> __device__ void forward(T* out, float* lse, const T* q, const T* k, const T* v, const u32* first, Shape o) {
    extern __shared__ float rows[];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    i64 token = blockIdx.x * (i64)(blockDim.x / 32) + warp, head = blockIdx.y, kv = head / (o.heads / o.kv_heads);
    if (token >= o.tokens) return;
    float* own = rows + warp * o.dim;
    const T* query = q + (token * o.heads + head) * o.dim;
    for (i64 i = lane; i < o.dim; i += 32) own[i] = to_f(query[i]);
    __syncwarp();
    i64 begin = max((i64)first[token], token + 1 - o.window), stride = o.kv_heads * o.dim;
    float max = -INFINITY, sum = 0.f, acc[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) acc[i] = 0.f;
    for (i64 k0 = begin; k0 <= token; k0 += 32) {
        i64 key = k0 + lane;
        float s = key <= token ? capped(dot(own, k + key * stride + kv * o.dim, o.dim) * o.scale, o) : -INFINITY;
        float top = fmaxf(max, warp_max(s)), p = key <= token ? expf(s - top) : 0.f, correction = expf(max - top);
        sum = sum * correction + warp_sum(p), max = top;
#pragma unroll
        for (int i = 0; i < ROWS; i++) acc[i] *= correction;
        for (int j = 0; j < 32 && k0 + j <= token; j++) {
            float pj = __shfl_sync(0xffffffffu, p, j);
            const T* value = v + (k0 + j) * stride + kv * o.dim;
#pragma unroll
            for (int i = 0; i < ROWS; i++)
                if (lane + 32 * i < o.dim) acc[i] += pj * to_f(value[lane + 32 * i]);
        }
    }
    T* to = out + (token * o.heads + head) * o.dim;
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        if (lane + 32 * i < o.dim) to[lane + 32 * i] = from_f<T>(acc[i] / sum);
    if (lane == 0) lse[head * o.tokens + token] = max + logf(sum);
}

// delta = rowsum(dout∘out), by head and token.
template <class T> __device__ void delta(float* sums, const T* dout, const T* out, i64 tokens, i64 heads, i64 dim) {
    int lane = threadIdx.x & 31;
    i64 task = blockIdx.x * (i64)(blockDim.x / 32) + threadIdx.x / 32;
    if (task >= tokens * heads) return;
    float sum = 0.f;
    for (i64 i = lane; i < dim; i += 32) sum += to_f(dout[task * dim + i]) * to_f(out[task * dim + i]);
    sum = warp_sum(sum);
    if (lane == 0) sums[task % heads * tokens + task / heads] = sum;
}

// The probability of a score, and the gradient of q·k.
__device__ __forceinline__ float probability(float s, float lse, float dp, float delta, const Shape& o, float* ds) {
    float y = capped(s * o.scale, o), p = expf(y - lse);
    *ds = p * (dp - delta) * o.scale * (o.cap > 0.f ? soft_cap_slope(y, o.cap) : 1.f);
    return p;
}

template <class T>
__device__ void backward_q(T* dq, const T* q, const T* k, const T* v, const T* dout, const float* lse, const float* deltas,
                           const u32* first, Shape o) {
    extern __shared__ float rows[];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    i64 token = blockIdx.x * (i64)(blockDim.x / 32) + warp, head = blockIdx.y, kv = head / (o.heads / o.kv_heads);
    if (token >= o.tokens) return;
    float *query = rows + 2 * warp * o.dim, *gradient = query + o.dim;
    i64 at = (token * o.heads + head) * o.dim;
    for (i64 i = lane; i < o.dim; i += 32) query[i] = to_f(q[at + i]), gradient[i] = to_f(dout[at + i]);
    __syncwarp();
    i64 begin = max((i64)first[token], token + 1 - o.window), stride = o.kv_heads * o.dim;
    float of_row = lse[head * o.tokens + token], delta = deltas[head * o.tokens + token], acc[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) acc[i] = 0.f;
    for (i64 k0 = begin; k0 <= token; k0 += 32) {
        i64 key = k0 + lane;
        float ds = 0.f;
        if (key <= token) {
            i64 row = key * stride + kv * o.dim;
            probability(dot(query, k + row, o.dim), of_row, dot(gradient, v + row, o.dim), delta, o, &ds);
        }
        for (int j = 0; j < 32 && k0 + j <= token; j++) {
            float dsj = __shfl_sync(0xffffffffu, ds, j);
            const T* row = k + (k0 + j) * stride + kv * o.dim;
#pragma unroll
            for (int i = 0; i < ROWS; i++)
                if (lane + 32 * i < o.dim) acc[i] += dsj * to_f(row[lane + 32 * i]);
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        if (lane + 32 * i < o.dim) dq[at + lane + 32 * i] = from_f<T>(acc[i]);
}

template <class T>
__device__ void backward_kv(T* dk, T* dv, const T* q, const T* k, const T* v, const T* dout, const float* lse,
                            const float* deltas, const u32* end, Shape o) {
    extern __shared__ float rows[];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    i64 token = blockIdx.x * (i64)(blockDim.x / 32) + warp, kv = blockIdx.y, group = o.heads / o.kv_heads;
    if (token >= o.tokens) return;
    float *key = rows + 2 * warp * o.dim, *value = key + o.dim;
    i64 at = (token * o.kv_heads + kv) * o.dim, last = min((i64)end[token], token + o.window);
    for (i64 i = lane; i < o.dim; i += 32) key[i] = to_f(k[at + i]), value[i] = to_f(v[at + i]);
    __syncwarp();
    float of_k[ROWS], of_v[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) of_k[i] = of_v[i] = 0.f;
    for (i64 head = kv * group; head < (kv + 1) * group; head++) {
        for (i64 q0 = token; q0 < last; q0 += 32) {
            i64 query = q0 + lane;
            float p = 0.f, ds = 0.f;
            if (query < last) {
                i64 row = (query * o.heads + head) * o.dim, number = head * o.tokens + query;
                p = probability(dot(key, q + row, o.dim), lse[number], dot(value, dout + row, o.dim), deltas[number], o, &ds);
            }
            for (int j = 0; j < 32 && q0 + j < last; j++) {
                float pj = __shfl_sync(0xffffffffu, p, j), dsj = __shfl_sync(0xffffffffu, ds, j);
                i64 row = ((q0 + j) * o.heads + head) * o.dim;
#pragma unroll
                for (int i = 0; i < ROWS; i++)
                    if (lane + 32 * i < o.dim) {
                        of_v[i] += pj * to_f(dout[row + lane + 32 * i]);
                        of_k[i] += dsj * to_f(q[row + lane + 32 * i]);
                    }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        if (lane + 32 * i < o.dim) {
            dk[at + lane + 32 * i] = from_f<T>(of_k[i]);
            dv[at + lane + 32 * i] = from_f<T>(of_v[i]);
        }
}

#define SHAPE i64 tokens, i64 heads, i64 kv_heads, i64 dim, float scale, float cap, i64 window
#define OF_SHAPE Shape { tokens, heads, kv_heads, dim, scale, cap, window }
#define PLAIN(T, t)                                                                                                            \
    extern "C" __global__ void forward_##t(T* out, float* lse, const T* q, const T* k, const T* v, const u32* first, SHAPE) {  \
        forward(out, lse, q, k, v, first, OF_SHAPE);                                                                           \
    }                                                                                                                          \
    extern "C" __global__ void delta_##t(float* sums, const T* dout, const T* out, i64 tokens, i64 heads, i64 dim) {           \
        delta(sums, dout, out, tokens, heads, dim);                                                                            \
    }                                                                                                                          \
    extern "C" __global__ void backward_q_##t(T* dq, const T* q, const T* k, const T* v, const T* dout, const float* lse,      \
                                              const float* deltas, const u32* first, SHAPE) {                                  \
        backward_q(dq, q, k, v, dout, lse, deltas, first, OF_SHAPE);                                                           \
    }                                                                                                                          \
    extern "C" __global__ void backward_kv_##t(T* dk, T* dv, const T* q, const T* k, const T* v, const T* dout,                \
                                               const float* lse, const float* deltas, const u32* end, SHAPE) {                 \
        backward_kv(dk, dv, q, k, v, dout, lse, deltas, end, OF_SHAPE);                                                        \
    }
PLAIN(float, f32)
PLAIN(bf16, bf16)
