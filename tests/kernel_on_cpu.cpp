// The kernel's own source, compiled for the CPU: what CUDA gives it is played here, so that its arithmetic can be held against the twin
// without a GPU. The test puts the source where KERNEL_SOURCE says, its PTX instructions written as calls of the functions of their names.
#include <algorithm>
#include <cmath>
#include <cstring>
using std::min;
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __align__(bytes) alignas(bytes)
#define __restrict__
struct Index { unsigned int x, y, z; };
static Index blockIdx, blockDim, threadIdx;
template <class T> static T __ldg(const T* from) { T value; memcpy(&value, from, sizeof value); return value; }
static float __uint_as_float(unsigned int bits) { float value; memcpy(&value, &bits, 4); return value; }
static unsigned int __byte_perm(unsigned int low, unsigned int high, unsigned int selector) {
    unsigned long long both = (unsigned long long)high << 32 | low;
    unsigned int picked = 0;
    for (int i = 0; i < 4; ++i) picked |= (unsigned int)(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return picked;
}
static float __saturatef(float value) { return std::min(std::max(value, 0.0f), 1.0f); }

// PTX, as its manual has it.
static unsigned int dp2a_lo_u32_u32(unsigned int halves, unsigned int bytes, unsigned int sum) {
    return sum + (halves & 65535) * (bytes & 255) + (halves >> 16) * (bytes >> 8 & 255);
}
static unsigned int dp2a_hi_u32_u32(unsigned int halves, unsigned int bytes, unsigned int sum) {
    return dp2a_lo_u32_u32(halves, bytes >> 16, sum);
}
static int cvt_rni_s32_f32(float value) { return (int)nearbyintf(std::min(std::max(value, -1e9f), 1e9f)); }
static unsigned int cvt_pack_sat_s8_s32_b32(int a, int b, unsigned int c) {
    unsigned int upper = (unsigned int)std::min(std::max(a, -128), 127) & 255, lower = (unsigned int)std::min(std::max(b, -128), 127) & 255;
    return c << 16 | upper << 8 | lower;
}
static unsigned short cvt_rn_f16_f32(float value) {
    unsigned int bits, sign;
    memcpy(&bits, &value, 4);
    sign = bits >> 16 & 0x8000, bits &= 0x7fffffff;
    if (bits >= 0x477ff000) return sign | 0x7c00;
    if (bits < 0x38800000) return sign | (unsigned int)nearbyintf(fabsf(value) * 16777216.0f);
    return sign | (bits + 0xfff + (bits >> 13 & 1) - 0x38000000) >> 13;
}
static unsigned int cvt_rn_f16x2_f32(float a, float b) { return (unsigned int)cvt_rn_f16_f32(a) << 16 | cvt_rn_f16_f32(b); }
#define __CUDA_ARCH__ 870
#include KERNEL_SOURCE

template <class Kernel> static void launch(Kernel kernel, unsigned int wide, unsigned int high, unsigned int images, unsigned int threads) {
    blockDim = {threads, 1, 1};
    for (unsigned int z = 0; z < images; ++z)
        for (unsigned int y = 0; y < high; ++y)
            for (unsigned int x = 0; x < wide; ++x)
                for (unsigned int t = 0; t < threads; ++t) { blockIdx = {x, y, z}; threadIdx = {t, 0, 0}; kernel(); }
}

#define RUN(pixels, layout, type) \
    extern "C" void run_##pixels##_##layout##_##type(const Frame* frames, type::Element* out, const Rules* rules, unsigned int wide, \
                                                     unsigned int high, unsigned int images, unsigned int threads) { \
        launch([=] { jf_fill_##layout##_##type(out, *rules); }, (rules->width + 31) / 32, rules->height, images, 32); \
        launch([=] { jf_preprocess_##pixels##_##layout##_##type(frames, out, *rules); }, wide, high, images, threads); \
    }
#define TYPES(pixels, layout) RUN(pixels, layout, f32) RUN(pixels, layout, f16) RUN(pixels, layout, i8)
#define BOTH(pixels) TYPES(pixels, nchw) TYPES(pixels, nhwc)
BOTH(nv12) BOTH(yuyv) BOTH(bgr) BOTH(rgba) BOTH(gray)
