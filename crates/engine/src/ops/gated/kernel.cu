// Gated linear units: SwiGLU and GeGLU, forward and backward in one pass each. Behind activations.cuh.

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
