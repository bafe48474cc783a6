// What every kernel's source begins with: element types, wide access, sums over a block, the counter-based generator, and tensor
// cores' instructions since sm_80.
// Without CUDA's own headers, which NVRTC's library does not bring along.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

struct bf16 {
    u16 bits;
};

__device__ __forceinline__ float to_f(float x) { return x; }
__device__ __forceinline__ float to_f(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

template <class T> __device__ __forceinline__ T from_f(float x);
template <> __device__ __forceinline__ float from_f<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_f<bf16>(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Two numbers as bf16 in one word, the first in its lower half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

// Elements of 16 bytes.
template <class T> struct Wide {
    static const int N = 16 / sizeof(T);
};

// N elements from p on, as floats; from `left` on there are none, and zeros take their place. `wide`: p is on 16 bytes.
template <class T> __device__ __forceinline__ void load(const T* p, float* out, i64 left, bool wide) {
    const int N = Wide<T>::N;
    if (wide && left >= N) {
        uint4 raw = *(const uint4*)p;
        const T* own = (const T*)&raw;
#pragma unroll
        for (int i = 0; i < N; i++) out[i] = to_f(own[i]);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) out[i] = i < left ? to_f(p[i]) : 0.f;
    }
}

template <class T> __device__ __forceinline__ void store(T* p, const float* from, i64 left, bool wide) {
    const int N = Wide<T>::N;
    if (wide && left >= N) {
        uint4 raw;
        T* own = (T*)&raw;
#pragma unroll
        for (int i = 0; i < N; i++) own[i] = from_f<T>(from[i]);
        *(uint4*)p = raw;
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < left) p[i] = from_f<T>(from[i]);
    }
}

__device__ __forceinline__ bool is_wide(const void* p) { return ((u64)p & 15) == 0; }

// The first element of each of this thread's groups of N.
#define EACH_GROUP(T, n)                                                                                                       \
    for (i64 at = (blockIdx.x * (i64)blockDim.x + threadIdx.x) * Wide<T>::N; at < (n);                                         \
         at += (i64)gridDim.x * blockDim.x * Wide<T>::N)

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}

// The sum over a block of up to 1024 threads, for all of them; `shared` holds 33 floats.
__device__ __forceinline__ float block_sum(float x, float* shared) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = (blockDim.x + 31) >> 5;
    x = warp_sum(x);
    if (lane == 0) shared[warp] = x;
    __syncthreads();
    if (warp == 0) {
        float y = warp_sum(lane < warps ? shared[lane] : 0.f);
        if (lane == 0) shared[32] = y;
    }
    __syncthreads();
    float total = shared[32];
    __syncthreads();
    return total;
}

__device__ __forceinline__ double block_sum(double x, double* shared) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = (blockDim.x + 31) >> 5;
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
    if (lane == 0) shared[warp] = x;
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0;
        for (int w = 0; w < warps; w++) total += shared[w];
        shared[32] = total;
    }
    __syncthreads();
    double total = shared[32];
    __syncthreads();
    return total;
}

// Philox4x32-10, word for word the engine's `rng::Key::words`.
__device__ __forceinline__ uint4 philox(u64 seed, u64 stream, u64 counter) {
    u32 c0 = (u32)counter, c1 = (u32)(counter >> 32), c2 = (u32)stream, c3 = (u32)(stream >> 32);
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u32 h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0;
        u32 h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
        u32 n0 = h1 ^ c1 ^ k0, n2 = h0 ^ c3 ^ k1;
        c0 = n0, c1 = l1, c2 = n2, c3 = l0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

// cap·tanh(x/cap)
__device__ __forceinline__ float soft_cap(float x, float cap) { return cap * tanhf(x / cap); }
__device__ __forceinline__ float soft_cap_slope(float y, float cap) {
    float t = y / cap;
    return 1.f - t * t;
}

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes into shared memory, by and by; zeros where there is nothing.
__device__ __forceinline__ void copy16(u32 to, const void* from, bool there) {
    int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;"); }
template <int N> __device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N)); }

// Four matrices of 8 by 8, whose rows of 16 bytes lie where each eight lanes say; and their transposes.
__device__ __forceinline__ void ldmatrix(u32* r, u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}

__device__ __forceinline__ void ldmatrix_turned(u32* r, u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}

// c [16, 8] += a [16, 16] · b [16, 8]
__device__ __forceinline__ void mma(float* c, const u32* a, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
