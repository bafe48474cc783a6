// What kernels for Hopper (sm_90a) begin with beside common.cuh: barriers in shared memory, the tensor copy engine, and the
// products of warpgroups (PTX ISA 8, "Asynchronous warpgroup level matrix instructions").
//
// Matrices in shared memory are panels: rows of 64 elements, 128 bytes, whose 16-byte parts the copy engine swaps by the row's
// last three bits; a panel begins on 1024 bytes.

// A description of a matrix in memory for the copy engine, made by the driver.
struct __align__(64) Map {
    u64 words[16];
};

__device__ __forceinline__ void barrier_init(u32 barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void barriers_ready() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and makes the barrier wait for as many bytes of the copy engine.
__device__ __forceinline__ void arrive_expecting(u32 barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait_for(u32 barrier, int phase) {
    asm volatile(
        "{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra END;\nbra AGAIN;\nEND:\n}" ::"r"(
            barrier),
        "r"(phase)
        : "memory");
}
// A barrier of `threads` threads of the block; 0 is __syncthreads'.
__device__ __forceinline__ void barrier_of(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// What this thread wrote to shared memory is seen by the copy engine and by products after the next barrier.
__device__ __forceinline__ void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A box of a matrix, from (row, column) on, into shared memory; zeros where there is no matrix.
__device__ __forceinline__ void fetch_box(u32 to, const Map* map, int column, int row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(column), "r"(row)
                 : "memory");
}
__device__ __forceinline__ void store_box(const Map* map, u32 from, int column, int row) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(from), "r"(column),
                 "r"(row)
                 : "memory");
}
__device__ __forceinline__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until shared memory has been read.
__device__ __forceinline__ void wait_for_stores() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

template <int N> __device__ __forceinline__ void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> __device__ __forceinline__ void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }

// A factor of a product, whose inner dimension runs along the rows of its panels.
__device__ __forceinline__ u64 along_rows(u32 address) { return (u64)((address & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62; }
// One whose inner dimension runs across them; `panel` is the distance of panels in bytes.
__device__ __forceinline__ u64 across_rows(u32 address, u32 panel) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)(panel >> 4) << 16 | 64ull << 32 | 1ull << 62;
}

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all groups of products but the last N are done.
template <int N> __device__ __forceinline__ void products_done() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

#define TEN(t) "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9, "
#define NUMBERS_32 TEN() TEN(1) TEN(2) "%30, %31"
#define NUMBERS_64 TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) "%60, %61, %62, %63"
#define NUMBERS_128                                                                                                            \
    TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) TEN(6) TEN(7) TEN(8) TEN(9) TEN(10) TEN(11)                                       \
    "%120, %121, %122, %123, %124, %125, %126, %127"
#define C4(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define C16(i) C4(i), C4(i + 1), C4(i + 2), C4(i + 3)
#define C64(i) C16(i), C16(i + 4), C16(i + 8), C16(i + 12)

// c [64, N] (+)= a [64, 16] · b [16, N] of a warpgroup; ACROSS: b's inner dimension runs across its panels' rows.
template <int N, int ACROSS> struct Product;
#define PRODUCT(N, NUMBERS, REGISTERS, A, B, ADD, A0, A1, A2, A3, RB, RADD, RACROSS, SACROSS)                                  \
    template <int ACROSS> struct Product<N, ACROSS> {                                                                          \
        static __device__ __forceinline__ void run(float (*c)[4], u64 a, u64 b, int add) {                                     \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N                  \
                         "k16.f32.bf16.bf16 {" NUMBERS "}, " A ", " B ", p, 1, 1, 0, " SACROSS ";\n}"                           \
                         : REGISTERS                                                                                           \
                         : "l"(a), "l"(b), "r"(add), "n"(ACROSS));                                                             \
        }                                                                                                                      \
        static __device__ __forceinline__ void run(float (*c)[4], const u32* a, u64 b, int add) {                              \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " RADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N                 \
                         "k16.f32.bf16.bf16 {" NUMBERS "}, {" A0 ", " A1 ", " A2 ", " A3 "}, " RB ", p, 1, 1, " RACROSS ";\n}"  \
                         : REGISTERS                                                                                           \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(ACROSS));                         \
        }                                                                                                                      \
    };
#define REGISTERS_32 C16(0), C16(4)
#define REGISTERS_64 C64(0)
#define REGISTERS_128 C64(0), C64(16)
PRODUCT(64, NUMBERS_32, REGISTERS_32, "%32", "%33", "%34", "%32", "%33", "%34", "%35", "%36", "%37", "%38", "%35")
PRODUCT(128, NUMBERS_64, REGISTERS_64, "%64", "%65", "%66", "%64", "%65", "%66", "%67", "%68", "%69", "%70", "%67")
PRODUCT(256, NUMBERS_128, REGISTERS_128, "%128", "%129", "%130", "%128", "%129", "%130", "%131", "%132", "%133", "%134", "%131")

// A place in a ring of stages, and which of a barrier's two phases is awaited there.
template <int STAGES> struct Ring {
    int stage = 0, phase = 0;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
};
