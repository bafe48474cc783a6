// AdamW over pieces of many tensors, one piece a block, in the order and roundings of the CPU's.

struct Piece {
    float *p, *m, *v;
    const float* g;
    u64 n;
    float scale, decay, step_size, b2, c1, c2, bias2, eps;
};

extern "C" __global__ void adamw(const Piece* pieces) {
    Piece o = pieces[blockIdx.x];
    for (u64 i = threadIdx.x; i < o.n; i += blockDim.x) {
        float g = __fmul_rn(o.g[i], o.scale);
        float decayed = __fmul_rn(o.p[i], o.decay);
        float m = __fadd_rn(o.m[i], __fmul_rn(__fsub_rn(g, o.m[i]), o.c1));
        float v = __fadd_rn(__fmul_rn(o.v[i], o.b2), __fmul_rn(__fmul_rn(g, g), o.c2));
        o.m[i] = m, o.v[i] = v;
        o.p[i] = __fsub_rn(decayed, __fmul_rn(o.step_size, __fdiv_rn(m, __fadd_rn(__fdiv_rn(__fsqrt_rn(v), o.bias2), o.eps))));
    }
}
