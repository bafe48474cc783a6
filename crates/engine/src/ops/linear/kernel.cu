// DoRA's factors: g = m / ‖(W + s·B·A)ⱼ‖, 1/norm, and what Σ dy∘y is to be multiplied by for dm, 1/(g·norm).

__device__ __forceinline__ void factors(float* g, float* inverse, float* of_output, i64 j, float m, float norm) {
    float scale = norm == 0.f ? 1.f : m / norm, one = norm == 0.f ? 0.f : 1.f / norm;
    g[j] = scale, inverse[j] = one, of_output[j] = one / scale;
}

// gram [r, r] = A·Aᵀ, A [r, cols]: a warp an element and its mirror image.
extern "C" __global__ void gram(float* to, const float* a, i64 r, i64 cols) {
    i64 pair = (blockIdx.x * (i64)blockDim.x + threadIdx.x) / 32, i = pair / r, j = pair % r;
    int lane = threadIdx.x & 31;
    if (i >= r || j > i) return;
    float sum = 0.f;
#pragma unroll 4
    for (i64 at = lane; at < cols; at += 32) sum += a[i * cols + at] * a[j * cols + at];
    sum = warp_sum(sum);
    if (lane == 0) to[i * r + j] = to[j * r + i] = sum;
}

// By row of W. `cross` is W·Aᵀ [out, r], `gram` is A·Aᵀ. Sums over the rank in f64, and the norm rounded to f32, as on the CPU.
extern "C" __global__ void dora_scale(float* g, float* inverse, float* of_output, const float* m, const double* squares,
                                      const float* cross, const float* gram, const float* b, double s, i64 out, i64 r) {
    i64 j = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    if (j >= out) return;
    double mixed = 0, own = 0;
    for (i64 k = 0; k < r; k++) {
        float bg = 0.f;
        for (i64 l = 0; l < r; l++) bg += b[j * r + l] * gram[l * r + k];
        mixed += (double)cross[j * r + k] * b[j * r + k];
        own += (double)bg * b[j * r + k];
    }
    double square = squares[j] + s * (2.0 * mixed + s * own);
    factors(g, inverse, of_output, j, m[j], square < 0 ? 0.f : (float)sqrt(square));
}

// The same for norms that are known.
extern "C" __global__ void dora_scale_fixed(float* g, float* inverse, float* of_output, const float* m, const double* norms, i64 out) {
    i64 j = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    if (j < out) factors(g, inverse, of_output, j, m[j], (float)norms[j]);
}
