// The kernel's own source, compiled for the CPU: what CUDA gives it is played here, so that its arithmetic can be held against the twin
// without a GPU. Only float32: the other types need more PTX. The test puts the source where KERNEL_SOURCE says, its asm taken out, or
// replaced by the functions below.
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
static unsigned int dp2a_lo(unsigned int halves, unsigned int bytes) {  // as PTX has it: two 16-bit numbers times the lower two bytes
    return (halves & 65535) * (bytes & 255) + (halves >> 16) * (bytes >> 8 & 255);
}
static unsigned int dp2a_hi(unsigned int halves, unsigned int bytes) { return dp2a_lo(halves, bytes >> 16); }
#include KERNEL_SOURCE

template <class Kernel> static void launch(Kernel kernel, unsigned int wide, unsigned int high, unsigned int images, unsigned int threads) {
    blockDim = {threads, 1, 1};
    for (unsigned int z = 0; z < images; ++z)
        for (unsigned int y = 0; y < high; ++y)
            for (unsigned int x = 0; x < wide; ++x)
                for (unsigned int t = 0; t < threads; ++t) { blockIdx = {x, y, z}; threadIdx = {t, 0, 0}; kernel(); }
}

#define RUN(pixels, layout) \
    extern "C" void run_##pixels##_##layout(const Frame* frames, float* out, const Rules* rules, unsigned int wide, unsigned int high, \
                                            unsigned int images, unsigned int threads) { \
        launch([=] { jf_fill_##layout##_f32(out, *rules); }, (rules->width + 31) / 32, rules->height, images, 32); \
        launch([=] { jf_preprocess_##pixels##_##layout##_f32(frames, out, *rules); }, wide, high, images, threads); \
    }
#define BOTH(pixels) RUN(pixels, nchw) RUN(pixels, nhwc)
BOTH(nv12) BOTH(yuyv) BOTH(bgr) BOTH(rgba) BOTH(gray)
