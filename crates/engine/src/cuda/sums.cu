// c = (Σ a·b)∘scale + bias + added, in bf16 with sums in f32, for Hopper: terms one after the other along the inner dimension,
// so that a layer with its adapter, or the gradient of an input of several layers, is one product. a's rows run along the inner
// dimension; b's too in the kernels named `along`, and across it in those named `across`. Scale and bias are by column; these
// two and `added` may be missing, and `added` may be c.
//
// A block has one warp that fetches and two warpgroups that compute 64 rows of a tile each, and takes tiles in a fixed order.

const int TERMS = 8;
const int TILE_M = 128, TILE_K = 64;
const int BYTES_A = TILE_M * TILE_K * 2;
// Shared memory for stages.
const int STAGED = 4 * (128 + 256) * TILE_K * 2;
// A warpgroup's part of the area that results go through: 64 rows of two panels.
const int RESULTS = 64 * 256;
// Tiles of rows that are taken together, so that they find the same columns in the cache.
const int TOGETHER = 16;

struct Terms {
    Map a[TERMS], b[TERMS];
    int steps[TERMS];
    int count;
};

struct Order {
    int rows, columns;
    __device__ __forceinline__ void place(int tile, int& row, int& column) const {
        int of_group = TOGETHER * columns, first = tile / of_group * TOGETHER;
        int size = min(rows - first, TOGETHER), rest = tile % of_group;
        row = first + rest % size, column = rest / size;
    }
};

struct Result {
    const bf16* added;
    const float *scale, *bias;
    int m, n;
};

extern __shared__ u8 memory[];

template <int TILE_N, int ACROSS> __device__ __forceinline__ void sums(const Terms& terms, const Map& c, Result result) {
    const int BYTES = BYTES_A + TILE_N * TILE_K * 2, STAGES = STAGED / BYTES;
    u32 stages = (shared_address(memory) + 1023) & ~1023u, results = stages + STAGED, barriers = results + 2 * RESULTS;
    auto full = [&](int stage) { return barriers + stage * 16; };
    auto empty = [&](int stage) { return barriers + stage * 16 + 8; };
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) barrier_init(full(i), 1), barrier_init(empty(i), 2);
        barriers_ready();
    }
    __syncthreads();
    int m = result.m, n = result.n;
    Order order = {(m + TILE_M - 1) / TILE_M, (n + TILE_N - 1) / TILE_N};
    int total = order.rows * order.columns;
    Ring<STAGES> ring;
    if (threadIdx.x < 128) {
        fewer_registers<40>();
        if (threadIdx.x != 0) return;
        for (int tile = blockIdx.x; tile < total; tile += gridDim.x) {
            int row, column;
            order.place(tile, row, column);
            for (int t = 0; t < terms.count; t++)
                for (int i = 0; i < terms.steps[t]; i++, ring.next()) {
                    u32 to = stages + ring.stage * BYTES, barrier = full(ring.stage);
                    wait_for(empty(ring.stage), ring.phase ^ 1);
                    arrive_expecting(barrier, BYTES);
                    fetch_box(to, &terms.a[t], i * TILE_K, row * TILE_M, barrier);
                    to += BYTES_A;
                    if (ACROSS) {
#pragma unroll
                        for (int p = 0; p < TILE_N / 64; p++)
                            fetch_box(to + p * 8192, &terms.b[t], column * TILE_N + p * 64, i * TILE_K, barrier);
                    } else {
#pragma unroll
                        for (int p = 0; p < TILE_N / 128; p++)
                            fetch_box(to + p * 16384, &terms.b[t], i * TILE_K, column * TILE_N + p * 128, barrier);
                    }
                }
        }
        return;
    }
    more_registers<232>();
    int half = (threadIdx.x >> 7) - 1, warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31, own = threadIdx.x & 127;
    float acc[TILE_N / 8][4];
    for (int tile = blockIdx.x; tile < total; tile += gridDim.x) {
        int row, column;
        order.place(tile, row, column);
        row = row * TILE_M + half * 64, column *= TILE_N;
        bool begun = false;
        for (int t = 0; t < terms.count; t++)
            for (int i = 0; i < terms.steps[t]; i++, ring.next()) {
                u32 a = stages + ring.stage * BYTES + half * 8192, b = stages + ring.stage * BYTES + BYTES_A;
                wait_for(full(ring.stage), ring.phase);
                products_begin();
#pragma unroll
                for (int k = 0; k < TILE_K / 16; k++)
                    Product<TILE_N, ACROSS>::run(acc, along_rows(a + k * 32),
                                                 ACROSS ? across_rows(b + k * 2048, 8192) : along_rows(b + k * 32), k > 0 || begun);
                products_end();
                products_done<0>();
                if (own == 0) arrive(empty(ring.stage));
                begun = true;
            }
        if (result.scale || result.bias || result.added) {
            int at = row + warp * 16 + (lane >> 2);
#pragma unroll
            for (int j = 0; j < TILE_N / 8; j++) {
                int to = column + j * 8 + (lane & 3) * 2;
                if (to >= n) continue;
                if (result.scale) {
                    float2 scale = *(const float2*)(result.scale + to);
                    acc[j][0] *= scale.x, acc[j][1] *= scale.y, acc[j][2] *= scale.x, acc[j][3] *= scale.y;
                }
                if (result.bias) {
                    float2 bias = *(const float2*)(result.bias + to);
                    acc[j][0] += bias.x, acc[j][1] += bias.y, acc[j][2] += bias.x, acc[j][3] += bias.y;
                }
                if (!result.added) continue;
#pragma unroll
                for (int side = 0; side < 2; side++) {
                    if (at + side * 8 >= m) continue;
                    u32 two = *(const u32*)(result.added + (i64)(at + side * 8) * n + to);
                    acc[j][2 * side] += __uint_as_float(two << 16);
                    acc[j][2 * side + 1] += __uint_as_float(two & 0xffff0000u);
                }
            }
        }
        // Two panels at a time.
        u32 area = results + half * RESULTS;
#pragma unroll
        for (int part = 0; part < TILE_N / 128; part++) {
            if (own == 0) wait_for_stores();
            barrier_of(1 + half, 128);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float(*x)[4] = acc + part * 16 + j * 2;
                int in_warp = (lane & 7) + ((lane >> 3) & 1) * 8, of_panel = j % 4 * 2 + (lane >> 4);
                u32 to = area + j / 4 * 8192 + (warp * 16 + in_warp) * 128 + ((of_panel ^ in_warp) & 7) * 16;
                asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
                             "r"(pack_bf16(x[0][0], x[0][1])), "r"(pack_bf16(x[0][2], x[0][3])), "r"(pack_bf16(x[1][0], x[1][1])),
                             "r"(pack_bf16(x[1][2], x[1][3]))
                             : "memory");
            }
            publish();
            barrier_of(1 + half, 128);
            if (own == 0) {
                store_box(&c, area, column + part * 128, row);
                store_box(&c, area + 8192, column + part * 128 + 64, row);
                commit_stores();
            }
        }
    }
    if (own == 0) wait_for_stores();
}

#define SUMS(NAME, TILE_N, ACROSS)                                                                                             \
    extern "C" __global__ void __launch_bounds__(384, 1)                                                                       \
        NAME(const __grid_constant__ Terms terms, const __grid_constant__ Map c, const bf16* added, const float* scale,        \
             const float* bias, int m, int n) {                                                                                \
        sums<TILE_N, ACROSS>(terms, c, Result{added, scale, bias, m, n});                                                      \
    }
SUMS(along_128, 128, 0)
SUMS(along_256, 256, 0)
SUMS(across_128, 128, 1)
SUMS(across_256, 256, 1)
