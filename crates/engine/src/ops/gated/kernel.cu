// Gated linear units: SwiGLU and GeGLU, forward and backward in one pass each.

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

template <class T, int A> __device__ void forward(T* y, const T* gate, const T* up, i64 n) {
    EACH_GROUP(T, n) {
        float g[Wide<T>::N], u[Wide<T>::N];
        load(gate + at, g, n - at, true);
        load(up + at, u, n - at, true);
#pragma unroll
        for (int i = 0; i < Wide<T>::N; i++) g[i] = activate<A>(g[i]) * u[i];
        store(y + at, g, n - at, true);
    }
}

template <class T, int A> __device__ void backward(T* dgate, T* dup, const T* gate, const T* up, const T* dy, i64 n) {
    EACH_GROUP(T, n) {
        float g[Wide<T>::N], u[Wide<T>::N], d[Wide<T>::N];
        load(gate + at, g, n - at, true);
        load(up + at, u, n - at, true);
        load(dy + at, d, n - at, true);
#pragma unroll
        for (int i = 0; i < Wide<T>::N; i++) {
            float slope, a = activate<A>(g[i], &slope);
            g[i] = d[i] * u[i] * slope;
            u[i] = d[i] * a;
        }
        store(dgate + at, g, n - at, true);
        store(dup + at, u, n - at, true);
    }
}

#define GATED(T, t, A, a)                                                                                                      \
    extern "C" __global__ void forward_##a##_##t(T* y, const T* gate, const T* up, i64 n) { forward<T, A>(y, gate, up, n); }   \
    extern "C" __global__ void backward_##a##_##t(T* dgate, T* dup, const T* gate, const T* up, const T* dy, i64 n) {          \
        backward<T, A>(dgate, dup, gate, up, dy, n);                                                                           \
    }
#define ACTIVATIONS(T, t) GATED(T, t, SILU, silu) GATED(T, t, GELU_TANH, gelu_tanh) GATED(T, t, GELU, gelu)
ACTIVATIONS(float, f32)
ACTIVATIONS(bf16, bf16)
