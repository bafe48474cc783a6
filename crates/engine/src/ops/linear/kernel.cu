// DoRA's factors: g = m / ‖(W + s·B·A)ⱼ‖ and 1/norm by row of W. `cross` is A·Wᵀ [r, out], `bg` is B·(A·Aᵀ) [out, r].
// Sums over the rank in f64, and the norm rounded to f32, as on the CPU.
extern "C" __global__ void dora_scale(float* g, float* inverse, const float* m, const double* squares, const float* cross,
                                      const float* bg, const float* b, double s, i64 out, i64 r) {
    i64 j = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    if (j >= out) return;
    double mixed = 0, own = 0;
    for (i64 k = 0; k < r; k++) {
        double bk = b[j * r + k];
        mixed += (double)cross[k * out + j] * bk;
        own += (double)bg[j * r + k] * bk;
    }
    double square = squares[j] + s * (2.0 * mixed + s * own);
    float norm = square < 0 ? 0.f : (float)sqrt(square);
    g[j] = norm == 0.f ? 1.f : m[j] / norm;
    inverse[j] = norm == 0.f ? 0.f : 1.f / norm;
}

// The same for norms that are known.
extern "C" __global__ void dora_scale_fixed(float* g, float* inverse, const float* m, const double* norms, i64 out) {
    i64 j = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    if (j >= out) return;
    float norm = (float)norms[j];
    g[j] = norm == 0.f ? 1.f : m[j] / norm;
    inverse[j] = norm == 0.f ? 0.f : 1.f / norm;
}

// What Σ dy∘y is to be multiplied by for dm: 1/(g·norm).
extern "C" __global__ void dora_of_output(float* factor, const float* g, const float* inverse, i64 out) {
    i64 j = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    if (j < out) factor[j] = inverse[j] / g[j];
}
