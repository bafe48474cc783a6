// The functions that gated units apply to the gate.

enum { SILU, GELU_TANH, GELU };

// σ(2z) with z = √(2/π)·(g + 0.044715·g³), and 2z'·g.
__device__ __forceinline__ float sigmoid_of_tanh(float g, float* growth) {
    const float k = 1.5957691216057308f, c = 0.044715f;
    float square = g * g;
    *growth = g * k * (1.f + 3.f * c * square);
    return 1.f / (1.f + expf(-k * g * (1.f + c * square)));
}

__device__ __forceinline__ float normal_cdf(float x) { return 0.5f * erfcf(-x * 0.7071067811865476f); }

template <int A> __device__ __forceinline__ float activate(float g) {
    float growth;
    if (A == SILU) return g / (1.f + expf(-g));
    if (A == GELU_TANH) return g * sigmoid_of_tanh(g, &growth);
    return g * normal_cdf(g);
}

// a(g), and a'(g) through `slope`.
template <int A> __device__ __forceinline__ float activate(float g, float* slope) {
    if (A == SILU) {
        float s = 1.f / (1.f + expf(-g));
        *slope = s * (1.f + g * (1.f - s));
        return g * s;
    }
    if (A == GELU_TANH) {
        float growth, s = sigmoid_of_tanh(g, &growth);
        *slope = s * (1.f + (1.f - s) * growth);
        return g * s;
    }
    float below = normal_cdf(g);
    *slope = below + g * 0.3989422804014327f * expf(-0.5f * g * g);
    return g * below;
}
