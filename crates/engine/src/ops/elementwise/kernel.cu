// Passes over memory that belong to tensors and to several ops: sums, casts, scaling, columns and rows picked, dropout.

// a += factor·b, in f32 and rounded once.
template <class A, class B> __device__ void add_assign(A* a, const B* b, float factor, i64 n) {
    // Groups are A's: B's may be twice as wide or half.
    EACH_GROUP(A, n) {
        float x[Wide<A>::N], y[Wide<A>::N];
        load(a + at, x, n - at, true);
        if (Wide<B>::N == Wide<A>::N) {
            load(b + at, y, n - at, true);
        } else {
#pragma unroll
            for (int i = 0; i < Wide<A>::N; i++) y[i] = at + i < n ? to_f(b[at + i]) : 0.f;
        }
#pragma unroll
        for (int i = 0; i < Wide<A>::N; i++) x[i] += factor * y[i];
        store(a + at, x, n - at, true);
    }
}

// y = a + factor·b
template <class T> __device__ void add(T* y, const T* a, const T* b, float factor, i64 n) {
    EACH_GROUP(T, n) {
        float x[Wide<T>::N], z[Wide<T>::N];
        load(a + at, x, n - at, true);
        load(b + at, z, n - at, true);
#pragma unroll
        for (int i = 0; i < Wide<T>::N; i++) x[i] += factor * z[i];
        store(y + at, x, n - at, true);
    }
}

template <class T> __device__ void scale(T* x, float factor, i64 n) {
    EACH_GROUP(T, n) {
        float v[Wide<T>::N];
        load(x + at, v, n - at, true);
#pragma unroll
        for (int i = 0; i < Wide<T>::N; i++) v[i] *= factor;
        store(x + at, v, n - at, true);
    }
}

template <class To, class From> __device__ void convert(To* y, const From* x, i64 n) {
    // Eight elements a thread: both types' accesses are wide.
    for (i64 at = (blockIdx.x * (i64)blockDim.x + threadIdx.x) * 8; at < n; at += (i64)gridDim.x * blockDim.x * 8) {
        float v[8];
#pragma unroll
        for (int i = 0; i < 8; i += Wide<From>::N) load(x + at + i, v + i, n - at - i, true);
#pragma unroll
        for (int i = 0; i < 8; i += Wide<To>::N) store(y + at + i, v + i, n - at - i, true);
    }
}

// Columns [first, first + cols) of rows of `from_stride` elements, to columns [0, cols) of rows of `to_stride`; or added to them.
template <class T>
__device__ void columns(T* to, const T* from, i64 rows, i64 cols, i64 to_stride, i64 from_stride, int add) {
    i64 groups = (cols + Wide<T>::N - 1) / Wide<T>::N;
    for (i64 task = blockIdx.x * (i64)blockDim.x + threadIdx.x; task < rows * groups; task += (i64)gridDim.x * blockDim.x) {
        i64 row = task / groups, at = task % groups * Wide<T>::N;
        const T* source = from + row * from_stride + at;
        T* target = to + row * to_stride + at;
        bool wide = is_wide(source) && is_wide(target);
        float v[Wide<T>::N], old[Wide<T>::N];
        load(source, v, cols - at, wide);
        if (add) {
            load((const T*)target, old, cols - at, wide);
#pragma unroll
            for (int i = 0; i < Wide<T>::N; i++) v[i] += old[i];
        }
        store(target, v, cols - at, wide);
    }
}

// Rows picked by index: y[i] = x[rows[i]].
template <class T> __device__ void gather(T* y, const T* x, const u32* rows, i64 count, i64 cols) {
    for (i64 i = blockIdx.x; i < count; i += gridDim.x) {
        const T* from = x + rows[i] * cols;
        T* to = y + i * cols;
        bool wide = is_wide(from) && is_wide(to);
        for (i64 at = threadIdx.x * Wide<T>::N; at < cols; at += blockDim.x * Wide<T>::N) {
            float v[Wide<T>::N];
            load(from + at, v, cols - at, wide);
            store(to + at, v, cols - at, wide);
        }
    }
}

// The way back, of f32 and scaled: y[rows[i]] = factor·x[i]. Other rows of y stay as they are.
template <class T> __device__ void scatter(T* y, const float* x, const u32* rows, float factor, i64 count, i64 cols) {
    for (i64 i = blockIdx.x; i < count; i += gridDim.x)
        for (i64 at = threadIdx.x; at < cols; at += blockDim.x)
            y[rows[i] * cols + at] = from_f<T>(x[i * cols + at] * factor);
}

// Column j of each row times g[j], plus other, plus bias[j]; each of the three may be missing.
template <class T>
__device__ void finish(T* y, const T* u, const float* g, const T* other, const float* bias, i64 rows, i64 cols) {
    i64 n = rows * cols;
    EACH_GROUP(T, n) {
        float v[Wide<T>::N], o[Wide<T>::N];
        load(u + at, v, n - at, true);
        if (other) load(other + at, o, n - at, true);
        i64 column = at % cols;
#pragma unroll
        for (int i = 0; i < Wide<T>::N; i++) {
            if (g) v[i] *= g[column];
            if (other) v[i] += o[i];
            if (bias) v[i] += bias[column];
            if (++column == cols) column = 0;
        }
        store(y + at, v, n - at, true);
    }
}

// Sums over a block of rows of a·b·r: b may be missing, r is by row and may be missing. The blocks' sums are summed in their
// order by `column_totals`.
template <class T>
__device__ void column_sums(float* partial, const T* a, const T* b, const float* r, i64 rows, i64 cols, i64 block) {
    i64 column = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    if (column >= cols) return;
    i64 first = blockIdx.y * block, end = min(rows, first + block);
    float sum = 0.f;
    for (i64 row = first; row < end; row++) {
        float x = to_f(a[row * cols + column]);
        if (b) x *= to_f(b[row * cols + column]);
        if (r) x *= r[row];
        sum += x;
    }
    partial[blockIdx.y * cols + column] = sum;
}

extern "C" __global__ void column_totals(float* total, const float* partial, const float* factor, i64 blocks, i64 cols) {
    i64 column = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    if (column >= cols) return;
    float sum = 0.f;
    for (i64 block = 0; block < blocks; block++) sum += partial[block * cols + column];
    total[column] = factor ? sum * factor[column] : sum;
}

__device__ __forceinline__ bool kept(const uint4& words, int i, u64 threshold) {
    u32 word = i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
    return word >= threshold;
}

// y = drop(x), or y = other + drop(x) where there is another: element i is kept when word i of the key is at least the
// threshold, and then scaled.
template <class T>
__device__ void dropout(T* y, const T* x, const T* other, u64 seed, u64 stream, u64 threshold, float scale, i64 n) {
    EACH_GROUP(T, n) {
        float v[Wide<T>::N], o[Wide<T>::N];
        load(x + at, v, n - at, true);
        if (other) load(other + at, o, n - at, true);
#pragma unroll
        for (int four = 0; four < Wide<T>::N; four += 4) {
            uint4 words = philox(seed, stream, (u64)(at + four) / 4);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float dropped = kept(words, i, threshold) ? v[four + i] * scale : 0.f;
                v[four + i] = other ? o[four + i] + dropped : dropped;
            }
        }
        store(y + at, v, n - at, true);
    }
}

// y = x + (2u − 1)·magnitudes[row], with u the uniform number of the element.
template <class T>
__device__ void noise(T* y, const T* x, const double* magnitudes, u64 seed, u64 stream, i64 rows, i64 cols) {
    i64 n = rows * cols;
    EACH_GROUP(T, n) {
        float v[Wide<T>::N];
        load(x + at, v, n - at, true);
#pragma unroll
        for (int four = 0; four < Wide<T>::N; four += 4) {
            uint4 words = philox(seed, stream, (u64)(at + four) / 4);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 word = i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
                double u = (double)(word >> 8) * (1.0 / 16777216.0);
                if (at + four + i < n) v[four + i] += (float)((2.0 * u - 1.0) * magnitudes[(at + four + i) / cols]);
            }
        }
        store(y + at, v, n - at, true);
    }
}

// Sums of squares of pieces of tensors, in f64, one a block: piece i is `sizes[i]` numbers at `pointers[i]`.
extern "C" __global__ void sums_of_squares(double* sums, const u64* pointers, const u64* sizes) {
    __shared__ double shared[33];
    const float* x = (const float*)pointers[blockIdx.x];
    double sum = 0;
    for (u64 i = threadIdx.x; i < sizes[blockIdx.x]; i += blockDim.x) sum += (double)x[i] * (double)x[i];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

#define PAIRS(A, a, B, b)                                                                                                      \
    extern "C" __global__ void add_assign_##a##_##b(A* x, const B* y, float factor, i64 n) { add_assign(x, y, factor, n); }    \
    extern "C" __global__ void convert_##a##_##b(A* y, const B* x, i64 n) { convert(y, x, n); }
PAIRS(float, f32, float, f32)
PAIRS(float, f32, bf16, bf16)
PAIRS(bf16, bf16, float, f32)
PAIRS(bf16, bf16, bf16, bf16)

#define SINGLES(T, t)                                                                                                          \
    extern "C" __global__ void add_##t(T* y, const T* a, const T* b, float factor, i64 n) { add(y, a, b, factor, n); }         \
    extern "C" __global__ void scale_##t(T* x, float factor, i64 n) { scale(x, factor, n); }                                   \
    extern "C" __global__ void columns_##t(T* to, const T* from, i64 rows, i64 cols, i64 to_stride, i64 from_stride, int add) { \
        columns(to, from, rows, cols, to_stride, from_stride, add);                                                            \
    }                                                                                                                          \
    extern "C" __global__ void gather_##t(T* y, const T* x, const u32* rows, i64 count, i64 cols) {                            \
        gather(y, x, rows, count, cols);                                                                                       \
    }                                                                                                                          \
    extern "C" __global__ void scatter_##t(T* y, const float* x, const u32* rows, float factor, i64 count, i64 cols) {         \
        scatter(y, x, rows, factor, count, cols);                                                                              \
    }                                                                                                                          \
    extern "C" __global__ void finish_##t(T* y, const T* u, const float* g, const T* other, const float* bias, i64 rows,       \
                                          i64 cols) {                                                                          \
        finish(y, u, g, other, bias, rows, cols);                                                                              \
    }                                                                                                                          \
    extern "C" __global__ void column_sums_##t(float* partial, const T* a, const T* b, const float* r, i64 rows, i64 cols,     \
                                               i64 block) {                                                                    \
        column_sums(partial, a, b, r, rows, cols, block);                                                                      \
    }                                                                                                                          \
    extern "C" __global__ void dropout_##t(T* y, const T* x, const T* other, u64 seed, u64 stream, u64 threshold, float scale, \
                                           i64 n) {                                                                            \
        dropout(y, x, other, seed, stream, threshold, scale, n);                                                               \
    }                                                                                                                          \
    extern "C" __global__ void noise_##t(T* y, const T* x, const double* magnitudes, u64 seed, u64 stream, i64 rows,           \
                                         i64 cols) {                                                                           \
        noise(y, x, magnitudes, seed, stream, rows, cols);                                                                     \
    }
SINGLES(float, f32)
SINGLES(bf16, bf16)

// Numbers for benchmarks, those that `bench::quick` draws on the CPU: uniform in ±0.035.
template <class T> __device__ void quick(T* y, u32 start, i64 n) {
    EACH_GROUP(T, n) {
        float v[Wide<T>::N];
#pragma unroll
        for (int i = 0; i < Wide<T>::N; i++) {
            u32 mixed = ((u32)(at + i) ^ start) * 0x9e3779b1u;
            mixed = (mixed ^ (mixed >> 15)) * 0x85ebca6bu;
            v[i] = ((float)(mixed >> 8) * (1.f / 16777216.f) - 0.5f) * 0.07f;
        }
        store(y + at, v, n - at, true);
    }
}
extern "C" __global__ void quick_f32(float* y, u32 start, i64 n) { quick(y, start, n); }
extern "C" __global__ void quick_bf16(bf16* y, u32 start, i64 n) { quick(y, start, n); }
