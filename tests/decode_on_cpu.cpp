// The decoding kernels' own source, compiled for the CPU: what CUDA gives it is played here, so that it can be held against its twin without a
// GPU. A block's threads run one after the other; those of `keep`, which wait for each other, are threads indeed. Blocks run backwards, so that
// candidates are found in another order than the twin has them.
#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
using std::max;
using std::min;
#define __device__
#define __global__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __align__(bytes) alignas(bytes)
#define __restrict__
struct Index { unsigned int x, y, z; };
static thread_local Index blockIdx, blockDim, threadIdx;
static thread_local std::barrier<>* block;
static void __syncthreads() { block->arrive_and_wait(); }
static int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
static int atomicAdd(int* to, int more) { int before = *to; *to += more; return before; }
template <class T> static T __ldg(const T* from) { return *from; }
static unsigned int __float_as_uint(float value) { unsigned int bits; memcpy(&bits, &value, 4); return bits; }
static float widened(unsigned short bits) { _Float16 half; memcpy(&half, &bits, 2); return (float)half; }
#include KERNEL_SOURCE

struct Grid { unsigned int x, y, z; };

template <class Kernel> static void launch(Kernel kernel, const Grid& grid, unsigned int threads) {
    blockDim = {threads, 1, 1};
    for (unsigned int z = grid.z; z-- > 0;)
        for (unsigned int y = grid.y; y-- > 0;)
            for (unsigned int x = grid.x; x-- > 0;)
                for (unsigned int t = 0; t < threads; ++t) { blockIdx = {x, y, z}; threadIdx = {t, 0, 0}; kernel(); }
}

template <class Kernel> static void launch_together(Kernel kernel, const Grid& grid, unsigned int threads) {
    for (unsigned int y = 0; y < grid.y; ++y) {
        std::barrier<> all(threads);
        std::vector<std::thread> running;
        for (unsigned int t = 0; t < threads; ++t)
            running.emplace_back([&, t] { blockDim = {threads, 1, 1}; blockIdx = {0, y, 0}; threadIdx = {t, 0, 0}; block = &all; kernel(); });
        for (std::thread& one : running) one.join();
    }
}

// `name` as the launch has it; false for a kernel that is not known here.
extern "C" bool launch_kernel(const char* name, const unsigned int* size, unsigned int threads, void** arguments) {
    Grid grid = {size[0], size[1], size[2]};
    auto workspace = *(unsigned char**)arguments[0];
    auto second = *(unsigned char**)arguments[1];
#define NO_HEAD(step, how) \
    if (!strcmp(name, "jf_decode_" #step)) { how([=] { jf_decode_##step(workspace, *(decode::Rules*)arguments[1]); }, grid, threads); return true; }
    NO_HEAD(clear, launch) NO_HEAD(rank, launch) NO_HEAD(compare, launch)
    if (!strcmp(name, "jf_decode_keep")) {
        launch_together([=] { jf_decode_keep(workspace, second, *(decode::Rules*)arguments[2]); }, grid, threads);
        return true;
    }
#define HEAD(step, head, type) \
    if (!strcmp(name, "jf_decode_" #step "_" #head "_" #type)) { \
        auto from = *(const decode::type::Element**)arguments[0]; \
        launch([=] { jf_decode_##step##_##head##_##type(from, second, *(decode::Rules*)arguments[2]); }, grid, threads); \
        return true; \
    }
#define BOTH(head, type) HEAD(scan, head, type) HEAD(gather, head, type)
#define TYPES(head) BOTH(head, f32) BOTH(head, f16)
    TYPES(v5) TYPES(v8) TYPES(v8_rows)
    return false;
}
