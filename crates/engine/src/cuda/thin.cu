
// The products of a tall matrix x [n, k] in bf16 with factors of few columns, those of adapters: sums over the columns, x·Fᵀ, and
// over the rows, Eᵀ·x. They take no longer than reading x, once for all factors there are (mma.sync, sm_80 and later).
//
// VARIANT is the number of tiles of 16 ranks. Ranks come in groups of 8, those of several adapters one after the other; a missing
// group is zeros. A thread copies 16-byte parts of rows into a ring in shared memory that only its warp reads. Behind activations.cuh.

#ifndef VARIANT
#define VARIANT 1
#endif
const int T = VARIANT, GROUPS = 2 * T;
const int MOST = 8; // Groups.

// Where each group's ranks are: eight rows, or eight columns of a matrix.
struct Factors {
    const bf16* of[MOST];
};

extern __shared__ __align__(128) u8 memory[];

__device__ __forceinline__ void take(u32* words, u32 at) {
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void leave(u32 at, const u32* words) {
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(at), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
}

// A thread's 8 neighbours along the inner dimension stand for the elements {2t, 2t+1, 2t+8, 2t+9} of two products: a sum's order
// is free as long as both factors have the same.
__device__ __forceinline__ void pair(u32* a, const u32* low, const u32* high, int s) {
    a[0] = low[2 * s], a[1] = high[2 * s], a[2] = low[2 * s + 1], a[3] = high[2 * s + 1];
}

// Through the first-level cache: the block's other warps read the same.
__device__ __forceinline__ void copy16_kept(u32 to, const void* from, bool there) {
    int bytes = there ? 16 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}

struct Outputs {
    void* of[MOST];
    float scale[MOST];
};

// Sums over the columns, to [n, r] matrices in bf16 or f32: scale·x·Fᵀ, F [r, k]. Eight warps share 16·M rows, each takes every
// eighth part of 32 columns; their sums are added in the warps' order.
template <int M>
__device__ __forceinline__ void down(const bf16* x, i64 n, i64 k, const Factors& f, const Outputs& out, i64 r, int in_f32) {
    const int DEPTH = 3, STAGE = M * 2 * 512;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    i64 row = ((i64)blockIdx.x * (blockDim.x >> 8) + (warp >> 3)) * (16 * M);
    i64 own = (warp & 7) * 32 + 8 * t, steps = (k + 255) / 256;
    u32 ring = shared_address(memory) + warp * (DEPTH * STAGE) + lane * 16;
    // Where the next step is fetched from and to, and how many columns are left from there.
    const bf16* from = x + (row + g) * k + own;
    i64 apart = 8 * k, left = k - own;
    u32 to = ring;
    auto fetch = [&]() {
#pragma unroll
        for (int i = 0; i < 2 * M; i++) {
            bool there = left > 0 && row + i * 8 + g < n;
            copy16(to + i * 512, there ? from + i * apart : x, there);
        }
        from += 256, left -= 256;
        to = to == ring + (DEPTH - 1) * STAGE ? ring : to + STAGE;
    };
#pragma unroll
    for (int step = 0; step < DEPTH - 1; step++) {
        fetch();
        commit();
    }
    float c[M][GROUPS][4] = {};
    u32 stage = ring;
    i64 at_factor = g * k + own;
    for (i64 step = 0; step < steps; step++) {
        uint4 b[GROUPS];
        bool inside = at_factor < g * k + k;
#pragma unroll
        for (int i = 0; i < GROUPS; i++)
            b[i] = f.of[i] && inside ? __ldg((const uint4*)(f.of[i] + at_factor)) : make_uint4(0, 0, 0, 0);
        at_factor += 256;
        wait<DEPTH - 2>();
        __syncwarp();
        fetch();
        commit();
#pragma unroll
        for (int m = 0; m < M; m++) {
            u32 low[4], high[4], a[4];
            take(low, stage + m * 1024), take(high, stage + m * 1024 + 512);
#pragma unroll
            for (int s = 0; s < 2; s++) {
                pair(a, low, high, s);
#pragma unroll
                for (int i = 0; i < GROUPS; i++) mma(c[m][i], a, s ? b[i].z : b[i].x, s ? b[i].w : b[i].y);
            }
        }
        stage = stage == ring + (DEPTH - 1) * STAGE ? ring : stage + STAGE;
    }
    // What was fetched beyond the end must not arrive later.
    wait<0>();
    float* sums = (float*)memory;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int side = 0; side < 2; side++) {
            __syncthreads();
#pragma unroll
            for (int i = 0; i < GROUPS; i++)
#pragma unroll
                for (int e = 0; e < 2; e++) sums[(warp * GROUPS * 2 + i * 2 + e) * 32 + lane] = c[m][i][2 * side + e];
            __syncthreads();
            for (int item = threadIdx.x & 255; item < GROUPS * 32; item += 256) {
                int i = item >> 5, l = item & 31;
                i64 at = row + m * 16 + side * 8 + (l >> 2);
                if (at >= n || !out.of[i]) continue;
                float one = 0.f, two = 0.f;
#pragma unroll
                for (int w = 0; w < 8; w++) {
                    const float* from = sums + ((warp & ~7) + w) * GROUPS * 64 + i * 64 + l;
                    one += from[0], two += from[32];
                }
                one *= out.scale[i], two *= out.scale[i];
                i64 to = at * r + 2 * (l & 3);
                if (in_f32)
                    *(float2*)((float*)out.of[i] + to) = make_float2(one, two);
                else
                    *(u32*)((bf16*)out.of[i] + to) = pack_bf16(one, two);
            }
        }
}

#define DOWN(M)                                                                                                                \
    extern "C" __global__ void __launch_bounds__(T * M < 8 ? 512 : 256)                                                        \
        down_##M(const bf16* x, i64 n, i64 k, const __grid_constant__ Factors f, const __grid_constant__ Outputs out, i64 r,    \
                 int in_f32) {                                                                                                 \
        down<M>(x, n, k, f, out, r, in_f32);                                                                                   \
    }
DOWN(1)
DOWN(2)

// activate in few instructions: two units in the last place of an f32 off, far below the rounding to bf16 that follows.
template <int A> __device__ __forceinline__ float quickly(float g) {
    if (A == SILU) return __fdividef(g, 1.f + __expf(-g));
    if (A == GELU_TANH) return __fdividef(g, 1.f + __expf(-1.5957691216057308f * g * (1.f + 0.044715f * g * g)));
    return activate<A>(g);
}

// What the pass over rows does beside: sums over the columns x·F with F [k, r], and before it all DoRA's part.
struct Beside {
    const bf16* f;
    float* down;
    const bf16* u;     // dm = Σ x∘u
    const float* g;    // x becomes g∘x
    bf16* scaled;
    float* dm;
    const bf16* up;    // x becomes activation(x)∘up
    const float* rstd; // x becomes x·rstd·(offset + w), rstd by row
    const void* w;
    float offset;
    int w_is_bf16;
};

// Sums over blocks of rows, Eᵀ·x for E [n, ranks], to `sums` [blocks, ranks, k]. A block has a warp for each 32·C columns.
enum { PLAIN, BOTH, SCALED, NORMED, GATED }; // GATED + the activation
template <int C, int KIND>
__device__ __forceinline__ void across(const bf16* x, i64 n, i64 k, i64 rows, const Factors& e, i64 r, float* sums, const Beside& o) {
    const bool UP = KIND == BOTH || KIND == SCALED, TWICE = KIND == SCALED || KIND >= GATED;
    const int DEPTH = TWICE || (UP && T >= 3) ? 2 : 4, FLIPS = T >= 3 ? 1 : 2;
    const int OF_U = 2 * C, OF_E = TWICE ? 4 * C : 2 * C, STAGE = (OF_E + T) * 512;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    i64 column = ((i64)blockIdx.x * 8 + warp) * (32 * C), first = blockIdx.y * rows, end = min(n, first + rows);
    int steps = (int)((end - first + 15) / 16);
    u32 ring = shared_address(memory) + warp * (DEPTH * STAGE);
    // Swapped so that eight rows' parts of one column lie in different banks.
    u32 own = (g * 4 + (t ^ ((g >> 1) & 3))) * 16, turned = ((lane & 7) * 4 + ((lane >> 3) ^ ((lane >> 1) & 3))) * 16;
    // This thread's first part: where the next step is fetched from, and how many rows are left from there.
    i64 start = (first + g) * k + column + 8 * t, apart = 8 * k;
    const bf16 *from = x + start, *beside = TWICE ? (KIND == SCALED ? o.u : o.up) + start : x;
    bf16* scaled = KIND == SCALED ? o.scaled + start : nullptr;
    const bf16* of_ranks[T];
#pragma unroll
    for (int i = 0; i < T; i++) {
        const bf16* group = e.of[2 * i + (lane >> 4)];
        of_ranks[i] = group ? group + (first + (lane & 15)) * r : nullptr;
    }
    bool inside[C];
#pragma unroll
    for (int j = 0; j < C; j++) inside[j] = column + j * 32 + 8 * t < k;
    int left = (int)(end - first), fetched = 0;
    auto fetch = [&]() {
        u32 to = ring + fetched % DEPTH * STAGE;
        int row = fetched * 16;
#pragma unroll
        for (int side = 0; side < 2; side++)
#pragma unroll
            for (int j = 0; j < C; j++) {
                bool there = inside[j] && row + side * 8 + g < left;
                i64 at = side * apart + j * 32;
                copy16(to + (side * C + j) * 512 + own, there ? from + at : x, there);
                if (TWICE) copy16(to + (OF_U + side * C + j) * 512 + own, there ? beside + at : x, there);
            }
#pragma unroll
        for (int i = 0; i < T; i++) {
            bool there = row + (lane & 15) < left && of_ranks[i];
            copy16_kept(to + (OF_E + i) * 512 + lane * 16, there ? of_ranks[i] : x, there);
            if (of_ranks[i]) of_ranks[i] += 16 * r;
        }
        from += 2 * apart, fetched++;
        if (TWICE) beside += 2 * apart;
    };
#pragma unroll
    for (int step = 0; step < DEPTH - 1; step++) {
        fetch();
        commit();
    }
    u32 f[C][2][GROUPS][2];
    float scale[C][8], dm[C][8] = {};
    if (KIND == NORMED) {
#pragma unroll
        for (int j = 0; j < C; j++)
#pragma unroll
            for (int i = 0; i < 8; i++) {
                i64 from = column + j * 32 + 8 * t + i;
                float w = from >= k ? 0.f : o.w_is_bf16 ? to_f(((const bf16*)o.w)[from]) : ((const float*)o.w)[from];
                scale[j][i] = o.offset + w;
            }
    }
    if (UP) {
        const u16* bits = (const u16*)o.f;
#pragma unroll
        for (int j = 0; j < C; j++)
#pragma unroll
            for (int i = 0; i < 8; i++) {
                i64 from = column + j * 32 + 8 * t + i;
                if (KIND == SCALED) scale[j][i] = from < k ? o.g[from] : 0.f;
#pragma unroll
                for (int group = 0; group < GROUPS; group++) {
                    int rank = group * 8 + g;
                    u32 word = from < k && rank < r ? bits[from * r + rank] : 0;
                    u32& both = f[j][i >> 2][group][(i >> 1) & 1];
                    both = i & 1 ? both | word << 16 : word;
                }
            }
    }
    float* down_to = UP ? o.down + (blockIdx.x * ((n + 15) / 16) + first / 16) * (GROUPS * 128) : nullptr;
    // 1/sigma of a step's rows is asked for a step ahead.
    float rstd[2], next[2];
    auto ask = [&](int step) {
#pragma unroll
        for (int side = 0; side < 2; side++) {
            int row = step * 16 + side * 8 + g;
            next[side] = row < left ? o.rstd[first + row] : 0.f;
        }
    };
    if (KIND == NORMED) ask(0);
    float c[T][C][4][4] = {};
    for (int step = 0; step < steps; step++) {
        if (KIND == NORMED) {
            rstd[0] = next[0], rstd[1] = next[1];
            ask(step + 1);
        }
        wait<DEPTH - 2>();
        __syncwarp();
        fetch();
        commit();
        u32 stage = ring + step % DEPTH * STAGE;
        if (KIND == SCALED) {
#pragma unroll
            for (int i = 0; i < 2 * C; i++) {
                u32 a[4], b[4];
                take(a, stage + i * 512 + own), take(b, stage + (OF_U + i) * 512 + own);
                float(&s)[8] = scale[i % C], (&m)[8] = dm[i % C];
#pragma unroll
                for (int w = 0; w < 4; w++) {
                    float low = __uint_as_float(a[w] << 16), high = __uint_as_float(a[w] & 0xffff0000u);
                    m[2 * w] += low * __uint_as_float(b[w] << 16);
                    m[2 * w + 1] += high * __uint_as_float(b[w] & 0xffff0000u);
                    a[w] = pack_bf16(low * s[2 * w], high * s[2 * w + 1]);
                }
                leave(stage + i * 512 + own, a);
                if (inside[i % C] && step * 16 + i / C * 8 + g < left)
                    *(uint4*)(scaled + i / C * apart + i % C * 32) = make_uint4(a[0], a[1], a[2], a[3]);
            }
            scaled += 2 * apart;
            __syncwarp();
        }
        if (KIND >= NORMED) {
#pragma unroll
            for (int i = 0; i < 2 * C; i++) {
                u32 a[4], b[4];
                take(a, stage + i * 512 + own);
                if (KIND >= GATED) take(b, stage + (OF_U + i) * 512 + own);
                float r = KIND == NORMED ? rstd[i / C] : 0.f;
#pragma unroll
                for (int w = 0; w < 4; w++) {
                    float low = __uint_as_float(a[w] << 16), high = __uint_as_float(a[w] & 0xffff0000u);
                    if (KIND == NORMED)
                        a[w] = pack_bf16(low * r * scale[i % C][2 * w], high * r * scale[i % C][2 * w + 1]);
                    else
                        a[w] = pack_bf16(quickly<KIND - GATED>(low) * __uint_as_float(b[w] << 16),
                                         quickly<KIND - GATED>(high) * __uint_as_float(b[w] & 0xffff0000u));
                }
                leave(stage + i * 512 + own, a);
            }
            __syncwarp();
        }
        u32 ranks[T][4];
#pragma unroll
        for (int i = 0; i < T; i++)
            ldmatrix_turned(ranks[i], stage + (OF_E + i) * 512 + (((lane >> 3) & 1) * 16 + (lane & 7) + (lane >> 4) * 8) * 16);
        float h[GROUPS][4] = {};
#pragma unroll
        for (int j = 0; j < C; j++) {
            u32 low[4], high[4];
            ldmatrix_turned(low, stage + j * 512 + turned), ldmatrix_turned(high, stage + (C + j) * 512 + turned);
#pragma unroll
            for (int m = 0; m < 4; m++)
#pragma unroll
                for (int i = 0; i < T; i++) mma(c[i][j][m], ranks[i], low[m], high[m]);
            if (!UP) continue;
            u32 a[4];
            take(low, stage + j * 512 + own), take(high, stage + (C + j) * 512 + own);
#pragma unroll
            for (int s = 0; s < 2; s++) {
                pair(a, low, high, s);
#pragma unroll
                for (int i = 0; i < GROUPS; i++) mma(h[i], a, f[j][s][i][0], f[j][s][i][1]);
            }
        }
        if (UP) {
            float* area = (float*)(memory + 8 * DEPTH * STAGE) + step % FLIPS * (8 * GROUPS * 128);
            if (FLIPS == 1) __syncthreads();
#pragma unroll
            for (int i = 0; i < GROUPS; i++)
#pragma unroll
                for (int v = 0; v < 4; v++) area[((warp * GROUPS + i) * 4 + v) * 32 + lane] = h[i][v];
            __syncthreads();
            float* to = down_to + step * (GROUPS * 128);
            for (int item = threadIdx.x; item < GROUPS * 128; item += 256) {
                float sum = 0.f;
#pragma unroll
                for (int w = 0; w < 8; w++) sum += area[w * GROUPS * 128 + item];
                to[item] = sum;
            }
        }
    }
#pragma unroll
    for (int j = 0; j < C; j++) {
#pragma unroll
        for (int m = 0; m < 4; m++) {
            i64 to = column + j * 32 + 8 * m + 2 * t;
            if (to >= k) continue;
#pragma unroll
            for (int i = 0; i < T; i++)
#pragma unroll
                for (int side = 0; side < 2; side++)
                    *(float2*)(sums + (blockIdx.y * (16 * T) + i * 16 + side * 8 + g) * k + to) =
                        make_float2(c[i][j][m][2 * side], c[i][j][m][2 * side + 1]);
        }
        if (KIND != SCALED) continue;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float sum = dm[j][i];
#pragma unroll
            for (int other = 4; other < 32; other <<= 1) sum += __shfl_xor_sync(0xffffffffu, sum, other);
            i64 to = column + j * 32 + 8 * t + i;
            if (g == 0 && to < k) o.dm[blockIdx.y * k + to] = sum;
        }
    }
}

#define ACROSS(KIND, kind, C)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, (KIND != BOTH && KIND != SCALED) || T <= 2 ? 2 : 1)                                         \
        across_##kind(const bf16* x, i64 n, i64 k, i64 rows, const __grid_constant__ Factors e, i64 r, float* sums,            \
                      const __grid_constant__ Beside beside) {                                                                 \
        across<C, KIND>(x, n, k, rows, e, r, sums, beside);                                                                    \
    }
ACROSS(PLAIN, plain, (T <= 2 ? 2 : 1))
ACROSS(NORMED, normed, (T <= 2 ? 2 : 1))
ACROSS(GATED + SILU, silu, (T <= 2 ? 2 : 1))
ACROSS(GATED + GELU_TANH, gelu_tanh, (T <= 2 ? 2 : 1))
ACROSS(GATED + GELU, gelu, (T <= 2 ? 2 : 1))
ACROSS(BOTH, both, (T == 1 ? 2 : 1))
ACROSS(SCALED, scaled, (T == 1 ? 2 : 1))

// The sums of all blocks, in their order: Eᵀ·x to f32 matrices [r, k], or turned to [k, r]; x·F to [n, r] in bf16; dm.
struct Totals {
    float* of[MOST];
    const float *sums, *down, *dm;
    bf16* h;
    const float* factor;
    float* m;
    i64 blocks_of_rows, blocks_of_columns, n, k, r;
    int turned;
    float scale;
};

extern "C" __global__ void totals(const __grid_constant__ Totals o) {
    i64 id = blockIdx.x * (i64)blockDim.x + threadIdx.x, quarters = o.k / 4, ranks = 16 * T;
    if (id < ranks * quarters) {
        i64 rank = id / quarters, column = id % quarters * 4;
        float* to = o.of[rank / 8];
        if (!to) return;
        float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 8
        for (i64 block = 0; block < o.blocks_of_rows; block++) {
            float4 x = *(const float4*)(o.sums + (block * ranks + rank) * o.k + column);
            sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
        }
        if (o.turned) {
            to += column * o.r + rank % 8;
            to[0] = sum.x, to[o.r] = sum.y, to[2 * o.r] = sum.z, to[3 * o.r] = sum.w;
        } else {
            *(float4*)(to + rank % 8 * o.k + column) = sum;
        }
        return;
    }
    id -= ranks * quarters;
    if (!o.h) return;
    i64 tiles = (o.n + 15) / 16, pairs = tiles * GROUPS * 64;
    if (id < pairs) {
        i64 tile = id / (GROUPS * 64);
        int item = (int)(id % (GROUPS * 64)), lane = item & 31, group = item >> 6, side = (item >> 5) & 1;
        float one = 0.f, two = 0.f;
#pragma unroll 8
        for (i64 block = 0; block < o.blocks_of_columns; block++) {
            const float* from = o.down + (block * tiles + tile) * (GROUPS * 128) + (group * 4 + side * 2) * 32 + lane;
            one += from[0], two += from[32];
        }
        i64 row = tile * 16 + side * 8 + (lane >> 2), rank = group * 8 + 2 * (lane & 3);
        if (row < o.n && rank < o.r) *(u32*)(o.h + row * o.r + rank) = pack_bf16(one * o.scale, two * o.scale);
        return;
    }
    id -= pairs;
    if (!o.m || id >= o.k) return;
    float sum = 0.f;
    for (i64 block = 0; block < o.blocks_of_rows; block++) sum += o.dm[block * o.k + id];
    o.m[id] = sum * o.factor[id];
}
