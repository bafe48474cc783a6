// Turns pairs of a head's first and second half; `direction` -1 turns them back. Elements past both stay as they are.

template <class T>
__device__ void rotate(T* y, const T* x, const float* cos, const float* sin, const u32* positions, float direction, i64 tokens,
                       i64 heads, i64 head_dim, i64 half) {
    const int N = Wide<T>::N;
    i64 pairs = (half + N - 1) / N, rest = (head_dim - 2 * half + N - 1) / N, tasks = pairs + rest;
    for (i64 task = blockIdx.x * (i64)blockDim.x + threadIdx.x; task < tokens * heads * tasks;
         task += (i64)gridDim.x * blockDim.x) {
        i64 head = task / tasks, at = task % tasks;
        const T* from = x + head * head_dim;
        T* to = y + head * head_dim;
        float a[N], b[N], c[N], s[N];
        if (at >= pairs) {
            i64 first = 2 * half + (at - pairs) * N;
            bool wide = is_wide(from + first) && is_wide(to + first);
            load(from + first, a, head_dim - first, wide);
            store(to + first, a, head_dim - first, wide);
            continue;
        }
        i64 first = at * N, left = half - first, row = (i64)positions[head / heads] * half + first;
        bool wide = is_wide(from + first) && is_wide(from + first + half) && is_wide(to + first) && is_wide(to + first + half);
        load(from + first, a, left, wide);
        load(from + first + half, b, left, wide);
        bool tables = is_wide(cos + row) && is_wide(sin + row);
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            load(cos + row + i, c + i, left - i, tables);
            load(sin + row + i, s + i, left - i, tables);
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            float turned = a[i] * c[i] - b[i] * s[i] * direction;
            b[i] = b[i] * c[i] + a[i] * s[i] * direction;
            a[i] = turned;
        }
        store(to + first, a, left, wide);
        store(to + first + half, b, left, wide);
    }
}

#define ROTATE(T, t)                                                                                                           \
    extern "C" __global__ void rotate_##t(T* y, const T* x, const float* cos, const float* sin, const u32* positions,          \
                                          float direction, i64 tokens, i64 heads, i64 head_dim, i64 half) {                    \
        rotate(y, x, cos, sin, positions, direction, tokens, heads, head_dim, half);                                           \
    }
ROTATE(float, f32)
ROTATE(bf16, bf16)
