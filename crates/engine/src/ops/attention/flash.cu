// Attention in bf16 on tensor cores (mma.sync, sm_80 and later), a tile of queries or of keys a block: FlashAttention-2's
// recurrence forward (Dao, arXiv 2307.08691), and for the backward one kernel that sums dq over the keys and one that sums dk
// and dv over the queries. No sum goes through atomics, so equal runs have equal bytes.
//
// A warp owns 16 rows of the block's 64. Tiles in shared memory have rows of a multiple of 128 bytes, whose 16-byte parts are
// swapped by the row's last three bits, so that neither the copies nor ldmatrix meet bank conflicts.
//
// A tile is {first row, first token of its document, end of its document}.

#ifndef VARIANT
#define VARIANT 128
#endif

const int D = VARIANT;
const int STEPS = D / 16;                 // Of k in a product over the head.
const int PITCH = (D + 63) / 64 * 64;     // Elements of a row in shared memory.
const int ROWS = 64;                      // Of a block.
const float LOG2E = 1.4426950408889634f;
const float LN2 = 0.6931471805599453f;

struct Shape {
    int tokens, heads, kv_heads, window;
    float scale, cap;
};

// How the host passes it.
#define SHAPE int tokens, int heads, int kv_heads, int window, float scale, float cap
#define OF_SHAPE Shape o = {tokens, heads, kv_heads, window, scale, cap}

struct Tile {
    int row, first, end;
};

// Where element (row, column) of a tile lies; columns in parts of eight.
__device__ __forceinline__ u32 place(u32 base, int row, int part) {
    return base + (row * PITCH + ((part & ~7) | ((part ^ row) & 7)) * 8) * 2;
}

// Rows [row, row + COUNT) of a head, those from `end` on as zeros.
template <int COUNT> __device__ __forceinline__ void fetch(u32 base, const bf16* from, i64 stride, int row, int end) {
    for (int i = threadIdx.x; i < COUNT * (D / 8); i += blockDim.x) {
        int r = i / (D / 8), part = i % (D / 8);
        bool there = row + r < end;
        copy16(place(base, r, part), from + (i64)(there ? row + r : row) * stride + part * 8, there);
    }
}

// 16 rows from `row` on and 16 columns of step `step`, as the left factor.
__device__ __forceinline__ void left(u32* a, u32 base, int row, int step) {
    int lane = threadIdx.x & 31;
    ldmatrix(a, place(base, row + (lane & 15), step * 2 + (lane >> 4)));
}

// c [16, N] += a · bᵀ over the head, b a tile of N rows; `a` gives the left factor of a step.
template <int N, class A> __device__ __forceinline__ void by_rows(float (*c)[4], A a, u32 base) {
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        u32 own[4], b[4];
        a(own, step);
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            ldmatrix(b, place(base, n * 16 + (lane & 7) + ((lane >> 4) & 1) * 8, step * 2 + ((lane >> 3) & 1)));
            mma(c[2 * n], own, b[0], b[1]);
            mma(c[2 * n + 1], own, b[2], b[3]);
        }
    }
}

// c [16, D] += a · b, a [16, K] in the layout of results and rounded to bf16, b a tile of K rows.
template <int K> __device__ __forceinline__ void by_columns(float (*c)[4], float (*a)[4], u32 base) {
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int k = 0; k < K / 16; k++) {
        u32 own[4] = {pack_bf16(a[2 * k][0], a[2 * k][1]), pack_bf16(a[2 * k][2], a[2 * k][3]),
                      pack_bf16(a[2 * k + 1][0], a[2 * k + 1][1]), pack_bf16(a[2 * k + 1][2], a[2 * k + 1][3])};
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            u32 b[4];
            ldmatrix_turned(b, place(base, k * 16 + (lane & 15), n * 2 + (lane >> 4)));
            mma(c[2 * n], own, b[0], b[1]);
            mma(c[2 * n + 1], own, b[2], b[3]);
        }
    }
}

template <int N> __device__ __forceinline__ void clear(float (*c)[4]) {
#pragma unroll
    for (int i = 0; i < N / 8; i++) c[i][0] = c[i][1] = c[i][2] = c[i][3] = 0.f;
}

// The rows of a [16, D] result, each times a factor; rows from `end` on are left out.
__device__ __forceinline__ void write(bf16* to, i64 stride, float (*c)[4], int row, int end, float low, float high) {
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int side = 0; side < 2; side++) {
        int r = row + (lane >> 2) + side * 8;
        float factor = side ? high : low;
        if (r >= end) continue;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *(u32*)(to + (i64)r * stride + n * 8 + (lane & 3) * 2) =
                pack_bf16(c[n][2 * side] * factor, c[n][2 * side + 1] * factor);
    }
}

extern __shared__ __align__(128) u8 memory[];

__device__ __forceinline__ bool hidden(int query, int key, int end, const Shape& o) {
    return key > query || query - key >= o.window || key >= end;
}

// KEYS keys at a time, two tiles of k and v in flight.
const int KEYS = D <= 128 ? 64 : 32;

extern "C" __global__ void __launch_bounds__(128) forward(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v,
                                                          const Tile* tiles, SHAPE) {
    OF_SHAPE;
    Tile tile = tiles[blockIdx.x];
    int head = blockIdx.y, kv = head / (o.heads / o.kv_heads), warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    i64 q_stride = (i64)o.heads * D, kv_stride = (i64)o.kv_heads * D;
    q += head * D, out += head * D, k += kv * D, v += kv * D;
    const int SIZE = KEYS * PITCH * 2;
    u32 base = (u32)__cvta_generic_to_shared(memory);

    u32 queries[STEPS][4];
    fetch<ROWS>(base, q, q_stride, tile.row, tile.end);
    commit();
    wait<0>();
    __syncthreads();
#pragma unroll
    for (int step = 0; step < STEPS; step++) left(queries[step], base, warp * 16, step);
    __syncthreads();

    int begin = max(tile.first, tile.row + 1 - o.window);
    begin = tile.first + (begin - tile.first) / KEYS * KEYS;
    int end = min(tile.end, tile.row + ROWS);
    auto load_tile = [&](int key, int stage) {
        fetch<KEYS>(base + stage * 2 * SIZE, k, kv_stride, key, tile.end);
        fetch<KEYS>(base + stage * 2 * SIZE + SIZE, v, kv_stride, key, tile.end);
        commit();
    };
    load_tile(begin, 0);
    float acc[D / 8][4], max_of[2] = {-INFINITY, -INFINITY}, sum_of[2] = {0.f, 0.f};
    clear<D>(acc);
    int query = tile.row + warp * 16 + (lane >> 2);
    float to_log2 = o.scale * LOG2E;
    for (int key = begin, stage = 0; key < end; key += KEYS, stage ^= 1) {
        if (key + KEYS < end) {
            load_tile(key + KEYS, stage ^ 1);
            wait<1>();
        } else {
            wait<0>();
        }
        __syncthreads();
        float s[KEYS / 8][4];
        clear<KEYS>(s);
        by_rows<KEYS>(s, [&](u32* a, int step) { for (int i = 0; i < 4; i++) a[i] = queries[step][i]; }, base + stage * 2 * SIZE);
        bool whole = key + KEYS - 1 <= tile.row && tile.row + ROWS - 1 - key < o.window;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[n][i] = o.cap > 0.f ? soft_cap(s[n][i] * o.scale, o.cap) * LOG2E : s[n][i] * to_log2;
                if (!whole && hidden(query + (i >> 1) * 8, key + n * 8 + (lane & 3) * 2 + (i & 1), tile.end, o))
                    s[n][i] = -INFINITY;
            }
#pragma unroll
        for (int side = 0; side < 2; side++) {
            float top = max_of[side];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) top = fmaxf(top, fmaxf(s[n][2 * side], s[n][2 * side + 1]));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            // A row that has seen no key yet keeps its sum of 0.
            float shift = top == -INFINITY ? 0.f : top, correction = exp2f(max_of[side] - shift), sum = 0.f;
            max_of[side] = top;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
                s[n][2 * side] = exp2f(s[n][2 * side] - shift);
                s[n][2 * side + 1] = exp2f(s[n][2 * side + 1] - shift);
                sum += s[n][2 * side] + s[n][2 * side + 1];
            }
            sum_of[side] = sum_of[side] * correction + sum;
#pragma unroll
            for (int n = 0; n < D / 8; n++) acc[n][2 * side] *= correction, acc[n][2 * side + 1] *= correction;
        }
        by_columns<KEYS>(acc, s, base + stage * 2 * SIZE + SIZE);
        __syncthreads();
    }
#pragma unroll
    for (int side = 0; side < 2; side++) {
        sum_of[side] += __shfl_xor_sync(0xffffffffu, sum_of[side], 1);
        sum_of[side] += __shfl_xor_sync(0xffffffffu, sum_of[side], 2);
        int row = query + side * 8;
        if ((lane & 3) == 0 && row < tile.end) lse[(i64)head * o.tokens + row] = (max_of[side] + log2f(sum_of[side])) * LN2;
    }
    write(out, q_stride, acc, tile.row + warp * 16, tile.end, 1.f / sum_of[0], 1.f / sum_of[1]);
}

// From a score s = q·k, its row's log-sum-exp (times log2 e), the gradient of its probability and the row's delta: the
// probability, and in place of `dp` the gradient of q·k.
__device__ __forceinline__ float probability(float s, float lse, float& dp, float delta, bool hide, const Shape& o) {
    float p, slope = o.scale;
    if (o.cap > 0.f) {
        float y = soft_cap(s * o.scale, o.cap);
        slope *= soft_cap_slope(y, o.cap);
        p = exp2f(y * LOG2E - lse);
    } else {
        p = exp2f(s * (o.scale * LOG2E) - lse);
    }
    if (hide) p = 0.f;
    dp = p * (dp - delta) * slope;
    return p;
}

// Smaller than forward's: two scores are in registers at a time.
const int STRIP = 32;

extern "C" __global__ void __launch_bounds__(128) backward_q(bf16* dq, const bf16* q, const bf16* k, const bf16* v,
                                                             const bf16* dout, const float* lse, const float* deltas,
                                                             const Tile* tiles, SHAPE) {
    OF_SHAPE;
    Tile tile = tiles[blockIdx.x];
    int head = blockIdx.y, kv = head / (o.heads / o.kv_heads), warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    i64 q_stride = (i64)o.heads * D, kv_stride = (i64)o.kv_heads * D;
    q += head * D, dout += head * D, dq += head * D, k += kv * D, v += kv * D;
    const int SIZE = STRIP * PITCH * 2, OWN = ROWS * PITCH * 2;
    // Wide heads keep their rows in shared memory, others in registers.
    const bool REGISTERS = D <= 128;
    u32 own = (u32)__cvta_generic_to_shared(memory), base = REGISTERS ? own : own + 2 * OWN;
    fetch<ROWS>(own, q, q_stride, tile.row, tile.end);
    fetch<ROWS>(own + OWN, dout, q_stride, tile.row, tile.end);
    commit();
    wait<0>();
    __syncthreads();
    u32 queries[REGISTERS ? STEPS : 1][4], gradients[REGISTERS ? STEPS : 1][4];
    if (REGISTERS) {
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            left(queries[REGISTERS ? step : 0], own, warp * 16, step);
            left(gradients[REGISTERS ? step : 0], own + OWN, warp * 16, step);
        }
        __syncthreads();
    }
    auto of_queries = [&](u32* a, int step) {
        if (REGISTERS) for (int i = 0; i < 4; i++) a[i] = queries[REGISTERS ? step : 0][i];
        else left(a, own, warp * 16, step);
    };
    auto of_gradients = [&](u32* a, int step) {
        if (REGISTERS) for (int i = 0; i < 4; i++) a[i] = gradients[REGISTERS ? step : 0][i];
        else left(a, own + OWN, warp * 16, step);
    };

    int begin = max(tile.first, tile.row + 1 - o.window);
    begin = tile.first + (begin - tile.first) / STRIP * STRIP;
    int end = min(tile.end, tile.row + ROWS);
    auto load_tile = [&](int key, int stage) {
        fetch<STRIP>(base + stage * 2 * SIZE, k, kv_stride, key, tile.end);
        fetch<STRIP>(base + stage * 2 * SIZE + SIZE, v, kv_stride, key, tile.end);
        commit();
    };
    load_tile(begin, 0);
    int query = tile.row + warp * 16 + (lane >> 2);
    float of_row[2], delta[2];
#pragma unroll
    for (int side = 0; side < 2; side++) {
        i64 at = (i64)head * o.tokens + min(query + side * 8, tile.end - 1);
        of_row[side] = lse[at] * LOG2E, delta[side] = deltas[at];
    }
    float acc[D / 8][4];
    clear<D>(acc);
    for (int key = begin, stage = 0; key < end; key += STRIP, stage ^= 1) {
        if (key + STRIP < end) {
            load_tile(key + STRIP, stage ^ 1);
            wait<1>();
        } else {
            wait<0>();
        }
        __syncthreads();
        float s[STRIP / 8][4], dp[STRIP / 8][4];
        clear<STRIP>(s);
        clear<STRIP>(dp);
        by_rows<STRIP>(s, of_queries, base + stage * 2 * SIZE);
        by_rows<STRIP>(dp, of_gradients, base + stage * 2 * SIZE + SIZE);
        bool whole = key + STRIP - 1 <= tile.row && tile.row + ROWS - 1 - key < o.window;
#pragma unroll
        for (int n = 0; n < STRIP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                bool hide = !whole && hidden(query + (i >> 1) * 8, key + n * 8 + (lane & 3) * 2 + (i & 1), tile.end, o);
                probability(s[n][i], of_row[i >> 1], dp[n][i], delta[i >> 1], hide, o);
            }
        by_columns<STRIP>(acc, dp, base + stage * 2 * SIZE);
        __syncthreads();
    }
    write(dq, q_stride, acc, tile.row + warp * 16, tile.end, 1.f, 1.f);
}

// Scores are turned round here: rows are keys, columns queries. WANT_K and WANT_V: which gradients, both where registers allow.
template <bool WANT_K, bool WANT_V>
__device__ __forceinline__ void gradients_of_keys(bf16* dk, bf16* dv, const bf16* q, const bf16* k, const bf16* v,
                                                  const bf16* dout, const float* lse, const float* deltas, const Tile* tiles,
                                                  const Shape& o) {
    Tile tile = tiles[blockIdx.x];
    int kv = blockIdx.y, group = o.heads / o.kv_heads, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    i64 q_stride = (i64)o.heads * D, kv_stride = (i64)o.kv_heads * D;
    k += kv * D, v += kv * D, dk += kv * D, dv += kv * D;
    const int SIZE = STRIP * PITCH * 2, OWN = ROWS * PITCH * 2;
    u32 own = (u32)__cvta_generic_to_shared(memory), base = own + 2 * OWN;
    float* numbers = (float*)(memory + 2 * OWN + 4 * SIZE);
    fetch<ROWS>(own, k, kv_stride, tile.row, tile.end);
    fetch<ROWS>(own + OWN, v, kv_stride, tile.row, tile.end);

    // Queries from the tile's first key to the end, by strips; then the next head of the group.
    i64 last = min((i64)tile.end, (i64)min(tile.row + ROWS, tile.end) - 1 + o.window);
    int strips = ((int)last - tile.row + STRIP - 1) / STRIP, total = strips * group;
    auto load_tile = [&](int i, int stage) {
        int head = kv * group + i / strips, query = tile.row + i % strips * STRIP;
        fetch<STRIP>(base + stage * 2 * SIZE, q + head * D, q_stride, query, tile.end);
        fetch<STRIP>(base + stage * 2 * SIZE + SIZE, dout + head * D, q_stride, query, tile.end);
        commit();
        if (threadIdx.x < 2 * STRIP) {
            int row = query + threadIdx.x % STRIP;
            const float* from = threadIdx.x < STRIP ? lse : deltas;
            float x = row < tile.end ? from[(i64)head * o.tokens + row] : 0.f;
            numbers[stage * 2 * STRIP + threadIdx.x] = threadIdx.x < STRIP ? x * LOG2E : x;
        }
    };
    load_tile(0, 0);
    float of_k[WANT_K ? D / 8 : 1][4], of_v[WANT_V ? D / 8 : 1][4];
    if (WANT_K) clear<WANT_K ? D : 8>(of_k);
    if (WANT_V) clear<WANT_V ? D : 8>(of_v);
    int key = tile.row + warp * 16 + (lane >> 2);
    for (int i = 0, stage = 0; i < total; i++, stage ^= 1) {
        if (i + 1 < total) {
            load_tile(i + 1, stage ^ 1);
            wait<1>();
        } else {
            wait<0>();
        }
        __syncthreads();
        int query = tile.row + i % strips * STRIP;
        u32 at = base + stage * 2 * SIZE;
        float s[STRIP / 8][4], dp[STRIP / 8][4];
        clear<STRIP>(s);
        clear<STRIP>(dp);
        by_rows<STRIP>(s, [&](u32* a, int step) { left(a, own, warp * 16, step); }, at);
        if (WANT_K) by_rows<STRIP>(dp, [&](u32* a, int step) { left(a, own + OWN, warp * 16, step); }, at + SIZE);
        bool whole = query >= tile.row + ROWS - 1 && query + STRIP - 1 - tile.row < o.window && query + STRIP <= tile.end;
        const float* own_numbers = numbers + stage * 2 * STRIP;
#pragma unroll
        for (int n = 0; n < STRIP / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int column = n * 8 + (lane & 3) * 2 + (j & 1), row = query + column;
                bool hide = !whole && (hidden(row, key + (j >> 1) * 8, tile.end, o) || row >= tile.end);
                s[n][j] = probability(s[n][j], own_numbers[column], dp[n][j], own_numbers[STRIP + column], hide, o);
            }
        if (WANT_V) by_columns<STRIP>(of_v, s, at + SIZE);
        if (WANT_K) by_columns<STRIP>(of_k, dp, at);
        __syncthreads();
    }
    if (WANT_K) write(dk, kv_stride, of_k, tile.row + warp * 16, tile.end, 1.f, 1.f);
    if (WANT_V) write(dv, kv_stride, of_v, tile.row + warp * 16, tile.end, 1.f, 1.f);
}

#define KEY_ARGUMENTS                                                                                                          \
    bf16 *dk, bf16 *dv, const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dout, const float *lse, const float *deltas,  \
        const Tile *tiles, SHAPE
#if VARIANT <= 128
extern "C" __global__ void __launch_bounds__(128) backward_kv(KEY_ARGUMENTS) {
    OF_SHAPE;
    gradients_of_keys<true, true>(dk, dv, q, k, v, dout, lse, deltas, tiles, o);
}
#else
extern "C" __global__ void __launch_bounds__(128) backward_k(KEY_ARGUMENTS) {
    OF_SHAPE;
    gradients_of_keys<true, false>(dk, dv, q, k, v, dout, lse, deltas, tiles, o);
}
extern "C" __global__ void __launch_bounds__(128) backward_v(KEY_ARGUMENTS) {
    OF_SHAPE;
    gradients_of_keys<false, true>(dk, dv, q, k, v, dout, lse, deltas, tiles, o);
}
#endif
