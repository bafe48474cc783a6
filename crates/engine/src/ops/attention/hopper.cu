// Attention in bf16 for Hopper: flash.cu's mathematics with the copy engine and products of warpgroups (after FlashAttention-3,
// Shah et al., arXiv 2407.08608). A block has one warp that fetches and two warpgroups that compute 64 rows each, and takes one
// piece of work after another from a counter; pieces write to places of their own, so equal runs have equal bytes.
//
// The backward is two kernels, one that sums dq over the keys and one that sums dk and dv over the queries: seven products in
// place of five, and no sum through memory.
//
// A tile is {first row, first token of its document, end of its document}.

#ifndef VARIANT
#define VARIANT 128
#endif

const int D = VARIANT;
const int PANELS = D / 64;
const int STEPS = D / 16;          // Of k in a product over the head.
const int ROWS = 128;              // Of a tile; a warpgroup has half of them.
const int HALF = 64 * 128;         // Bytes from one warpgroup's rows of a panel to the other's.
const float LOG2E = 1.4426950408889634f;
const float LN2 = 0.6931471805599453f;

struct Shape {
    int tokens, heads, kv_heads, window;
    float scale, cap;
};

#define SHAPE int tokens, int heads, int kv_heads, int window, float scale, float cap
#define OF_SHAPE Shape o = {tokens, heads, kv_heads, window, scale, cap}

struct Tile {
    int row, first, end;
};

__device__ __forceinline__ float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Shared memory from a multiple of 1024 bytes on.
__device__ __forceinline__ u32 aligned(const void* memory) { return (shared_address(memory) + 1023) & ~1023u; }

// Bytes of a tile of so many rows, and of one of its panels.
__host__ __device__ constexpr int panel(int rows) { return rows * 128; }
__host__ __device__ constexpr int bytes(int rows) { return PANELS * panel(rows); }

// A head's rows from `row` on.
template <int COUNT> __device__ __forceinline__ void fetch(u32 to, const Map* map, int head, int row, u32 barrier) {
#pragma unroll
    for (int p = 0; p < PANELS; p++) fetch_box(to + p * panel(COUNT), map, head * D + p * 64, row, barrier);
}

// s [64, N] = a · bᵀ over the head: 64 rows of a tile of 128, and a tile of N rows.
template <int N> __device__ __forceinline__ void scores(float (*s)[4], u32 a, u32 b) {
#pragma unroll
    for (int step = 0; step < STEPS; step++)
        Product<N, 0>::run(s, along_rows(a + step / 4 * panel(ROWS) + step % 4 * 32),
                           along_rows(b + step / 4 * panel(N) + step % 4 * 32), step > 0);
}

// c [64, D] += p · b, p [64, N] rounded, b a tile of N rows.
template <int N> __device__ __forceinline__ void weighted(float (*c)[4], const u32 (*p)[4], u32 b) {
#pragma unroll
    for (int k = 0; k < N / 16; k++) Product<D, 1>::run(c, p[k], across_rows(b + k * 2048, panel(N)), 1);
}

// A result of a product as the left factor of another.
template <int N> __device__ __forceinline__ void rounded(u32 (*p)[4], float (*s)[4]) {
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        p[k][0] = pack_bf16(s[2 * k][0], s[2 * k][1]);
        p[k][1] = pack_bf16(s[2 * k][2], s[2 * k][3]);
        p[k][2] = pack_bf16(s[2 * k + 1][0], s[2 * k + 1][1]);
        p[k][3] = pack_bf16(s[2 * k + 1][2], s[2 * k + 1][3]);
    }
}

template <int N> __device__ __forceinline__ void clear(float (*c)[4]) {
#pragma unroll
    for (int i = 0; i < N / 8; i++) c[i][0] = c[i][1] = c[i][2] = c[i][3] = 0.f;
}

// A warp's 16 rows of a [.., D] result, each times a factor, by way of its rows of a tile in shared memory, whose first is at
// `stage`; rows from `end` on are left out.
__device__ __forceinline__ void write(bf16* to, i64 stride, float (*c)[4], u32 stage, int row, int end, float low, float high) {
    int lane = threadIdx.x & 31, r = lane >> 2;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        u32 at = stage + n / 8 * panel(ROWS) + ((n ^ r) & 7) * 16 + (lane & 3) * 4;
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(at + r * 128), "r"(pack_bf16(c[n][0] * low, c[n][1] * low)) : "memory");
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(at + (r + 8) * 128), "r"(pack_bf16(c[n][2] * high, c[n][3] * high)) : "memory");
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        int part = lane % (D / 8), own = i * (256 / D) + lane / (D / 8);
        u32 at = stage + part / 8 * panel(ROWS) + own * 128 + ((part ^ own) & 7) * 16;
        uint4 x;
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(at) : "memory");
        if (row + own < end) *(uint4*)(to + (i64)(row + own) * stride + part * 8) = x;
    }
    publish();
    __syncwarp();
}

__device__ __forceinline__ bool hidden(int query, int key, int end, const Shape& o) {
    return key > query || query - key >= o.window || key >= end;
}

extern __shared__ u8 memory[];

// Keys of a step forward.
const int KEYS = 128;

struct Barriers {
    u32 at;
    __device__ __forceinline__ u32 operator[](int i) const { return at + 8 * i; }
};

extern "C" __global__ void __launch_bounds__(384, 1)
    forward(bf16* out, float* lse, const __grid_constant__ Map q, const __grid_constant__ Map k, const __grid_constant__ Map v,
            int* counter, const Tile* tiles, int items, SHAPE) {
    OF_SHAPE;
    const int STAGES = 2;
    u32 queries = aligned(memory), keys = queries + 2 * bytes(ROWS), values = keys + STAGES * bytes(KEYS);
    u32 after = values + STAGES * bytes(KEYS);
    Barriers full_q{after}, empty_q{after + 16}, full_k{after + 32}, empty_k{after + 48}, full_v{after + 64}, empty_v{after + 80};
    volatile int* work = (volatile int*)(memory + (after + 96 - shared_address(memory)));
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            barrier_init(full_q[i], 1), barrier_init(full_k[i], 1), barrier_init(full_v[i], 1);
            barrier_init(empty_q[i], 8), barrier_init(empty_k[i], 8), barrier_init(empty_v[i], 8);
        }
        barriers_ready();
    }
    __syncthreads();
    int group = o.heads / o.kv_heads;
    auto range = [&](Tile tile, int& end) {
        int begin = max(tile.first, tile.row + 1 - o.window);
        end = min(tile.end, tile.row + ROWS);
        return tile.first + (begin - tile.first) / KEYS * KEYS;
    };
    if (threadIdx.x < 128) {
        fewer_registers<40>();
        if (threadIdx.x != 0) return;
        Ring<2> of_q;
        Ring<STAGES> of_k;
        for (;; of_q.next()) {
            int item = atomicAdd(counter, 1);
            wait_for(empty_q[of_q.stage], of_q.phase ^ 1);
            work[of_q.stage] = item < items ? item : -1;
            if (item >= items) return arrive(full_q[of_q.stage]);
            Tile tile = tiles[item / o.heads];
            int head = item % o.heads, end, begin = range(tile, end);
            arrive_expecting(full_q[of_q.stage], bytes(ROWS));
            fetch<ROWS>(queries + of_q.stage * bytes(ROWS), &q, head, tile.row, full_q[of_q.stage]);
            for (int key = begin; key < end; key += KEYS, of_k.next()) {
                int s = of_k.stage;
                wait_for(empty_k[s], of_k.phase ^ 1);
                arrive_expecting(full_k[s], bytes(KEYS));
                fetch<KEYS>(keys + s * bytes(KEYS), &k, head / group, key, full_k[s]);
                wait_for(empty_v[s], of_k.phase ^ 1);
                arrive_expecting(full_v[s], bytes(KEYS));
                fetch<KEYS>(values + s * bytes(KEYS), &v, head / group, key, full_v[s]);
            }
        }
    }
    more_registers<232>();
    int half = (threadIdx.x >> 7) - 1, warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31;
    float to_log2 = o.cap > 0.f ? LOG2E : o.scale * LOG2E;
    Ring<2> of_q;
    Ring<STAGES> of_k, of_v;
    for (;; of_q.next()) {
        wait_for(full_q[of_q.stage], of_q.phase);
        int item = work[of_q.stage];
        if (item < 0) return;
        Tile tile = tiles[item / o.heads];
        int head = item % o.heads, end, begin = range(tile, end);
        u32 own = queries + of_q.stage * bytes(ROWS) + half * HALF;
        int query = tile.row + half * 64 + warp * 16 + (lane >> 2);
        float acc[D / 8][4], s[KEYS / 8][4], max_of[2] = {-INFINITY, -INFINITY}, sum_of[2] = {0.f, 0.f};
        u32 p[KEYS / 16][4];
        clear<D>(acc);
        for (int key = begin; key < end; key += KEYS) {
            wait_for(full_k[of_k.stage], of_k.phase);
            products_begin();
            scores<KEYS>(s, own, keys + of_k.stage * bytes(KEYS));
            products_end();
            if (key > begin) {
                wait_for(full_v[of_v.stage], of_v.phase);
                weighted<KEYS>(acc, p, values + of_v.stage * bytes(KEYS));
                products_end();
                products_done<1>();
            } else {
                products_done<0>();
            }
            if (lane == 0) arrive(empty_k[of_k.stage]);
            of_k.next();
            if (o.cap > 0.f) {
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) s[n][i] = soft_cap(s[n][i] * o.scale, o.cap);
            }
            bool whole = key + KEYS - 1 <= tile.row && tile.row + ROWS - 1 - key < o.window;
            if (!whole) {
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        if (hidden(query + (i >> 1) * 8, key + n * 8 + (lane & 3) * 2 + (i & 1), tile.end, o)) s[n][i] = -INFINITY;
            }
            float correction[2];
#pragma unroll
            for (int side = 0; side < 2; side++) {
                float top = max_of[side];
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++) top = fmaxf(top, fmaxf(s[n][2 * side], s[n][2 * side + 1]));
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
                // A row that has seen no key yet keeps its sum of 0.
                float shift = top == -INFINITY ? 0.f : top * to_log2, sum = 0.f;
                correction[side] = exp2_of(max_of[side] * to_log2 - shift);
                max_of[side] = top;
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++) {
                    s[n][2 * side] = exp2_of(s[n][2 * side] * to_log2 - shift);
                    s[n][2 * side + 1] = exp2_of(s[n][2 * side + 1] * to_log2 - shift);
                    sum += s[n][2 * side] + s[n][2 * side + 1];
                }
                sum_of[side] = sum_of[side] * correction[side] + sum;
            }
            if (key > begin) {
                products_done<0>();
                if (lane == 0) arrive(empty_v[of_v.stage]);
                of_v.next();
#pragma unroll
                for (int n = 0; n < D / 8; n++) {
                    acc[n][0] *= correction[0], acc[n][1] *= correction[0];
                    acc[n][2] *= correction[1], acc[n][3] *= correction[1];
                }
            }
            rounded<KEYS>(p, s);
        }
        wait_for(full_v[of_v.stage], of_v.phase);
        products_begin();
        weighted<KEYS>(acc, p, values + of_v.stage * bytes(KEYS));
        products_end();
        products_done<0>();
        if (lane == 0) arrive(empty_v[of_v.stage]);
        of_v.next();
#pragma unroll
        for (int side = 0; side < 2; side++) {
            sum_of[side] += __shfl_xor_sync(0xffffffffu, sum_of[side], 1);
            sum_of[side] += __shfl_xor_sync(0xffffffffu, sum_of[side], 2);
            int row = query + side * 8;
            if ((lane & 3) == 0 && row < tile.end)
                lse[(i64)head * o.tokens + row] = (max_of[side] * to_log2 + log2f(sum_of[side])) * LN2;
        }
        write(out + head * D, (i64)o.heads * D, acc, own + warp * 2048, tile.row + half * 64 + warp * 16, tile.end,
              1.f / sum_of[0], 1.f / sum_of[1]);
        if (lane == 0) arrive(empty_q[of_q.stage]);
    }
}

// Keys of a step of backward_q, and queries of a step of backward_kv.
const int STRIP = 64;

// From a score s = q·k, its row's log-sum-exp times log2 e: the probability; and what its gradient is to be multiplied by
// besides the scale.
__device__ __forceinline__ float probability(float s, float lse, float& slope, const Shape& o) {
    if (o.cap > 0.f) {
        float y = soft_cap(s * o.scale, o.cap);
        slope = soft_cap_slope(y, o.cap);
        return exp2_of(y * LOG2E - lse);
    }
    slope = 1.f;
    return exp2_of(s * (o.scale * LOG2E) - lse);
}

extern "C" __global__ void __launch_bounds__(384, 1)
    backward_q(bf16* dq, const __grid_constant__ Map q, const __grid_constant__ Map k, const __grid_constant__ Map v,
               const __grid_constant__ Map dout, const float* lse, const float* deltas, int* counter, const Tile* tiles, int items,
               SHAPE) {
    OF_SHAPE;
    const int STAGES = 3;
    u32 queries = aligned(memory), gradients = queries + 2 * bytes(ROWS), keys = gradients + 2 * bytes(ROWS);
    u32 values = keys + STAGES * bytes(STRIP), after = values + STAGES * bytes(STRIP);
    Barriers full_q{after}, empty_q{after + 16}, full{after + 32}, empty{after + 64};
    volatile int* work = (volatile int*)(memory + (after + 96 - shared_address(memory)));
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) barrier_init(full_q[i], 1), barrier_init(empty_q[i], 8);
        for (int i = 0; i < STAGES; i++) barrier_init(full[i], 1), barrier_init(empty[i], 8);
        barriers_ready();
    }
    __syncthreads();
    int group = o.heads / o.kv_heads;
    auto range = [&](Tile tile, int& end) {
        int begin = max(tile.first, tile.row + 1 - o.window);
        end = min(tile.end, tile.row + ROWS);
        return tile.first + (begin - tile.first) / STRIP * STRIP;
    };
    if (threadIdx.x < 128) {
        fewer_registers<40>();
        if (threadIdx.x != 0) return;
        Ring<2> of_q;
        Ring<STAGES> of_k;
        for (;; of_q.next()) {
            int item = atomicAdd(counter, 1), own = of_q.stage;
            wait_for(empty_q[own], of_q.phase ^ 1);
            work[own] = item < items ? item : -1;
            if (item >= items) return arrive(full_q[own]);
            Tile tile = tiles[item / o.heads];
            int head = item % o.heads, end, begin = range(tile, end);
            arrive_expecting(full_q[own], 2 * bytes(ROWS));
            fetch<ROWS>(queries + own * bytes(ROWS), &q, head, tile.row, full_q[own]);
            fetch<ROWS>(gradients + own * bytes(ROWS), &dout, head, tile.row, full_q[own]);
            for (int key = begin; key < end; key += STRIP, of_k.next()) {
                int s = of_k.stage;
                wait_for(empty[s], of_k.phase ^ 1);
                arrive_expecting(full[s], 2 * bytes(STRIP));
                fetch<STRIP>(keys + s * bytes(STRIP), &k, head / group, key, full[s]);
                fetch<STRIP>(values + s * bytes(STRIP), &v, head / group, key, full[s]);
            }
        }
    }
    more_registers<232>();
    int half = (threadIdx.x >> 7) - 1, warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31;
    Ring<2> of_q;
    Ring<STAGES> of_k;
    for (;; of_q.next()) {
        wait_for(full_q[of_q.stage], of_q.phase);
        int item = work[of_q.stage];
        if (item < 0) return;
        Tile tile = tiles[item / o.heads];
        int head = item % o.heads, end, begin = range(tile, end);
        u32 own = queries + of_q.stage * bytes(ROWS) + half * HALF, own_gradients = gradients + of_q.stage * bytes(ROWS) + half * HALF;
        int first = tile.row + half * 64, query = first + warp * 16 + (lane >> 2);
        float acc[D / 8][4], of_row[2], delta[2];
        clear<D>(acc);
#pragma unroll
        for (int side = 0; side < 2; side++) {
            i64 at = (i64)head * o.tokens + min(query + side * 8, tile.end - 1);
            of_row[side] = lse[at] * LOG2E, delta[side] = deltas[at];
        }
        for (int key = begin; key < end; key += STRIP, of_k.next()) {
            int stage = of_k.stage;
            wait_for(full[stage], of_k.phase);
            // The upper rows do not see the last keys.
            if (key > first + 63) {
                if (lane == 0) arrive(empty[stage]);
                continue;
            }
            float s[STRIP / 8][4], dp[STRIP / 8][4];
            u32 ds[STRIP / 16][4];
            products_begin();
            scores<STRIP>(s, own, keys + stage * bytes(STRIP));
            products_end();
            scores<STRIP>(dp, own_gradients, values + stage * bytes(STRIP));
            products_end();
            products_done<1>();
            bool whole = key + STRIP - 1 <= first && first + 63 - key < o.window;
            float slope[STRIP / 8][4];
#pragma unroll
            for (int n = 0; n < STRIP / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    s[n][i] = probability(s[n][i], of_row[i >> 1], slope[n][i], o);
                    if (!whole && hidden(query + (i >> 1) * 8, key + n * 8 + (lane & 3) * 2 + (i & 1), tile.end, o)) s[n][i] = 0.f;
                }
            products_done<0>();
#pragma unroll
            for (int n = 0; n < STRIP / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) s[n][i] = s[n][i] * slope[n][i] * (dp[n][i] - delta[i >> 1]);
            rounded<STRIP>(ds, s);
            products_begin();
            weighted<STRIP>(acc, ds, keys + stage * bytes(STRIP));
            products_end();
            products_done<0>();
            if (lane == 0) arrive(empty[stage]);
        }
        write(dq + head * D, (i64)o.heads * D, acc, own + warp * 2048, first + warp * 16, tile.end, o.scale, o.scale);
        if (lane == 0) arrive(empty_q[of_q.stage]);
    }
}

// Scores are turned round here: rows are keys, columns queries.
extern "C" __global__ void __launch_bounds__(384, 1)
    backward_kv(bf16* dk, bf16* dv, const __grid_constant__ Map q, const __grid_constant__ Map k, const __grid_constant__ Map v,
                const __grid_constant__ Map dout, const float* lse, const float* deltas, int* counter, const Tile* tiles, int items,
                SHAPE) {
    OF_SHAPE;
    const int STAGES = 2;
    u32 keys = aligned(memory), values = keys + 2 * bytes(ROWS), queries = values + 2 * bytes(ROWS);
    u32 gradients = queries + STAGES * bytes(STRIP), after = gradients + STAGES * bytes(STRIP);
    Barriers full_k{after}, empty_k{after + 16}, full{after + 32}, empty{after + 48};
    u8* more = memory + (after + 64 - shared_address(memory));
    volatile int* work = (volatile int*)more;
    // By stage, log-sum-exps and deltas of the strip's queries.
    float(*numbers)[2][STRIP] = (float(*)[2][STRIP])(more + 16);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) barrier_init(full_k[i], 1), barrier_init(empty_k[i], 8);
        for (int i = 0; i < STAGES; i++) barrier_init(full[i], 32), barrier_init(empty[i], 8);
        barriers_ready();
    }
    __syncthreads();
    // Queries from the tile's first key to the last that sees one, by strips, for each head of the group.
    int group = o.heads / o.kv_heads;
    auto strips = [&](Tile tile) {
        i64 last = min((i64)tile.end, (i64)min(tile.row + ROWS, tile.end) - 1 + o.window);
        return ((int)last - tile.row + STRIP - 1) / STRIP;
    };
    if (threadIdx.x < 128) {
        fewer_registers<24>();
        if (threadIdx.x >= 32) return;
        int lane = threadIdx.x;
        Ring<2> of_k;
        Ring<STAGES> of_q;
        for (;; of_k.next()) {
            int item = lane == 0 ? atomicAdd(counter, 1) : 0, own = of_k.stage;
            item = __shfl_sync(0xffffffffu, item, 0);
            wait_for(empty_k[own], of_k.phase ^ 1);
            if (lane == 0) work[own] = item < items ? item : -1;
            if (item >= items) {
                if (lane == 0) arrive(full_k[own]);
                return;
            }
            Tile tile = tiles[item / o.kv_heads];
            int kv = item % o.kv_heads, of_tile = strips(tile);
            if (lane == 0) {
                arrive_expecting(full_k[own], 2 * bytes(ROWS));
                fetch<ROWS>(keys + own * bytes(ROWS), &k, kv, tile.row, full_k[own]);
                fetch<ROWS>(values + own * bytes(ROWS), &v, kv, tile.row, full_k[own]);
            }
            for (int head = kv * group; head < (kv + 1) * group; head++)
                for (int i = 0; i < of_tile; i++, of_q.next()) {
                    int query = tile.row + i * STRIP, s = of_q.stage;
                    float of_rows[2], delta[2];
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        int row = query + j * 32 + lane;
                        i64 at = (i64)head * o.tokens + min(row, tile.end - 1);
                        of_rows[j] = lse[at] * LOG2E, delta[j] = deltas[at];
                    }
                    wait_for(empty[s], of_q.phase ^ 1);
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        numbers[s][0][j * 32 + lane] = of_rows[j];
                        numbers[s][1][j * 32 + lane] = delta[j];
                    }
                    if (lane == 0) {
                        arrive_expecting(full[s], 2 * bytes(STRIP));
                        fetch<STRIP>(queries + s * bytes(STRIP), &q, head, query, full[s]);
                        fetch<STRIP>(gradients + s * bytes(STRIP), &dout, head, query, full[s]);
                    } else {
                        arrive(full[s]);
                    }
                }
        }
    }
    more_registers<240>();
    int half = (threadIdx.x >> 7) - 1, warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31;
    Ring<2> of_k;
    Ring<STAGES> of_q;
    for (;; of_k.next()) {
        wait_for(full_k[of_k.stage], of_k.phase);
        int item = work[of_k.stage];
        if (item < 0) return;
        Tile tile = tiles[item / o.kv_heads];
        int kv = item % o.kv_heads, of_tile = strips(tile), total = of_tile * group;
        u32 own = keys + of_k.stage * bytes(ROWS) + half * HALF, own_values = values + of_k.stage * bytes(ROWS) + half * HALF;
        int first = tile.row + half * 64, key = first + warp * 16 + (lane >> 2);
        float of_keys[D / 8][4], of_values[D / 8][4];
        clear<D>(of_keys);
        clear<D>(of_values);
        for (int i = 0; i < total; i++, of_q.next()) {
            int stage = of_q.stage, query = tile.row + i % of_tile * STRIP;
            wait_for(full[stage], of_q.phase);
            // The first queries do not see the lower keys.
            if (query + STRIP - 1 < first) {
                if (lane == 0) arrive(empty[stage]);
                continue;
            }
            float s[STRIP / 8][4], dp[STRIP / 8][4];
            u32 p[STRIP / 16][4], ds[STRIP / 16][4];
            u32 at = queries + stage * bytes(STRIP), at_gradients = gradients + stage * bytes(STRIP);
            products_begin();
            scores<STRIP>(s, own, at);
            products_end();
            scores<STRIP>(dp, own_values, at_gradients);
            products_end();
            products_done<1>();
            bool whole = query >= first + 63 && query + STRIP - 1 - first < o.window && query + STRIP <= tile.end;
#pragma unroll
            for (int n = 0; n < STRIP / 8; n++) {
                float2 of_rows = *(float2*)&numbers[stage][0][n * 8 + (lane & 3) * 2];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    int row = query + n * 8 + (lane & 3) * 2 + (j & 1);
                    float slope;
                    s[n][j] = probability(s[n][j], j & 1 ? of_rows.y : of_rows.x, slope, o);
                    if (!whole && (hidden(row, key + (j >> 1) * 8, tile.end, o) || row >= tile.end)) s[n][j] = 0.f;
                }
            }
            rounded<STRIP>(p, s);
            products_done<0>();
#pragma unroll
            for (int n = 0; n < STRIP / 8; n++) {
                float2 delta = *(float2*)&numbers[stage][1][n * 8 + (lane & 3) * 2];
#pragma unroll
                for (int j = 0; j < 4; j++) dp[n][j] = s[n][j] * (dp[n][j] - (j & 1 ? delta.y : delta.x));
            }
            if (o.cap > 0.f) {
                // The scores are gone: the cap's slope comes from the probabilities.
#pragma unroll
                for (int n = 0; n < STRIP / 8; n++) {
                    float2 of_rows = *(float2*)&numbers[stage][0][n * 8 + (lane & 3) * 2];
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        if (s[n][j] > 0.f)
                            dp[n][j] *= soft_cap_slope((log2f(s[n][j]) + (j & 1 ? of_rows.y : of_rows.x)) * LN2, o.cap);
                }
            }
            rounded<STRIP>(ds, dp);
            // Together: products that are under way while other registers are written would be run one by one.
            products_begin();
            weighted<STRIP>(of_values, p, at_gradients);
            weighted<STRIP>(of_keys, ds, at);
            products_end();
            products_done<0>();
            if (lane == 0) arrive(empty[stage]);
        }
        i64 stride = (i64)o.kv_heads * D;
        int row = first + warp * 16;
        write(dk + kv * D, stride, of_keys, own + warp * 2048, row, tile.end, o.scale, o.scale);
        write(dv + kv * D, stride, of_values, own_values + warp * 2048, row, tile.end, 1.f, 1.f);
        if (lane == 0) arrive(empty_k[of_k.stage]);
    }
}
