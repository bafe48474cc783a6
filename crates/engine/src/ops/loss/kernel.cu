// Cross entropy of a chunk's logits [rows, vocabulary] in f32, a block of threads a row. The row's gradient of the head's
// outputs, softmax − (1 − ε)·onehot − ε/vocabulary through the scale and the soft cap, goes to `dy`; ε is the label smoothing.

// Merges a running maximum and sum of exponentials with another's.
__device__ __forceinline__ void merge(float& max, float& sum, float other_max, float other_sum) {
    float top = fmaxf(max, other_max);
    if (top == -INFINITY) return;
    sum = sum * expf(max - top) + other_sum * expf(other_max - top);
    max = top;
}

template <class T>
__device__ void cross_entropy(T* dy, const float* outputs, const u32* targets, double* losses, int* correct, float scale,
                              float cap, float smoothing, i64 rows, i64 vocabulary) {
    __shared__ float maxima[32], sums[32];
    __shared__ double totals[32];
    __shared__ int first_better;
    i64 row = blockIdx.x;
    const float* u = outputs + row * vocabulary;
    u32 target = targets[row];
    auto logit = [&](float x) {
        float z = x * scale;
        return cap > 0.f ? soft_cap(z, cap) : z;
    };
    if (threadIdx.x == 0) first_better = 0;
    bool wide = is_wide(u);
    float max = -INFINITY, sum = 0.f;
    double total = 0.;
    for (i64 at = threadIdx.x * 4; at < vocabulary; at += blockDim.x * 4) {
        float v[4];
        load(u + at, v, vocabulary - at, wide);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (at + i >= vocabulary) continue;
            float z = logit(v[i]);
            if (smoothing > 0.f) total += z;
            if (z > max) {
                sum = max == -INFINITY ? 1.f : sum * expf(max - z) + 1.f;
                max = z;
            } else {
                sum += expf(z - max);
            }
        }
    }
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
        float other_max = __shfl_xor_sync(0xffffffffu, max, offset), other_sum = __shfl_xor_sync(0xffffffffu, sum, offset);
        merge(max, sum, other_max, other_sum);
        if (smoothing > 0.f) total += __shfl_xor_sync(0xffffffffu, total, offset);
    }
    if (lane == 0) maxima[warp] = max, sums[warp] = sum, totals[warp] = total;
    __syncthreads();
    max = maxima[0], sum = sums[0], total = totals[0];
    for (int w = 1; w < warps; w++) {
        merge(max, sum, maxima[w], sums[w]);
        total += totals[w];
    }
    float at_target = logit(u[target]);
    if (at_target == max) {
        // An equal one before the target makes the prediction wrong, as argmax does.
        for (i64 i = threadIdx.x; i < target; i += blockDim.x)
            if (logit(u[i]) == max) first_better = 1;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double wanted = (double)at_target;
        if (smoothing > 0.f) wanted = (1. - (double)smoothing) * wanted + (double)smoothing * (total / (double)vocabulary);
        losses[row] = log((double)sum) + (double)max - wanted;
        correct[row] = at_target == max && !first_better;
    }
    if (!dy) return;
    float inverse = 1.f / sum, even = smoothing / (float)vocabulary;
    dy += row * vocabulary;
    for (i64 at = threadIdx.x * 4; at < vocabulary; at += blockDim.x * 4) {
        float v[4];
        load(u + at, v, vocabulary - at, wide);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (at + i >= vocabulary) continue;
            float z = logit(v[i]);
            float d = expf(z - max) * inverse - even - (at + i == target ? 1.f - smoothing : 0.f);
            d *= scale;
            if (cap > 0.f) d *= soft_cap_slope(z, cap);
            v[i] = d;
        }
        if (sizeof(T) == 2 && at + 4 <= vocabulary && (((u64)(dy + at)) & 7) == 0) {
            *(uint2*)(dy + at) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (at + i < vocabulary) dy[at + i] = from_f<T>(v[i]);
        }
    }
}

#define CROSS_ENTROPY(T, t)                                                                                                    \
    extern "C" __global__ void cross_entropy_##t(T* dy, const float* outputs, const u32* targets, double* losses,              \
                                                 int* correct, float scale, float cap, float smoothing, i64 rows,              \
                                                 i64 vocabulary) {                                                             \
        cross_entropy(dy, outputs, targets, losses, correct, scale, cap, smoothing, rows, vocabulary);                         \
    }
CROSS_ENTROPY(float, f32)
CROSS_ENTROPY(bf16, bf16)
