// What a chain of separate kernels does for the same tensor: colours of the whole frame, then resize, then normalise and lay out. A thread a
// pixel, as in the usual libraries. Only benchmarks/kernels.py compiles it, to count its instructions.

__device__ __forceinline__ void store_colors(unsigned char* to, float y, float u, float v) {
    float luma = fmaf(y, 1.164f, -16.0f * 1.164f);
    u -= 128.0f;
    v -= 128.0f;
    to[0] = (unsigned char)fminf(fmaxf(fmaf(v, 1.596f, luma), 0.0f), 255.0f);
    to[1] = (unsigned char)fminf(fmaxf(fmaf(u, -0.392f, fmaf(v, -0.813f, luma)), 0.0f), 255.0f);
    to[2] = (unsigned char)fminf(fmaxf(fmaf(u, 2.017f, luma), 0.0f), 255.0f);
}

extern "C" __global__ void convert_nv12(const unsigned char* luma, const unsigned char* chroma, int pitch, int width, int height,
                                        unsigned char* out) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    const unsigned char* pair = chroma + (y >> 1) * pitch + (x & ~1);
    store_colors(out + (y * width + x) * 3, luma[y * pitch + x], pair[0], pair[1]);
}

extern "C" __global__ void convert_yuyv(const unsigned char* in, int pitch, int width, int height, unsigned char* out) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    const unsigned char* four = in + y * pitch + (x >> 1) * 4;
    store_colors(out + (y * width + x) * 3, four[(x & 1) * 2], four[1], four[3]);
}

extern "C" __global__ void convert_rgba(const unsigned int* in, int pitch, int width, int height, unsigned char* out) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    unsigned int pixel = in[y * pitch + x];
    unsigned char* to = out + (y * width + x) * 3;
    to[0] = (unsigned char)pixel;
    to[1] = (unsigned char)(pixel >> 8);
    to[2] = (unsigned char)(pixel >> 16);
}

extern "C" __global__ void resize(const unsigned char* in, int width, int height, float step_x, float step_y, unsigned char* out, int wide,
                                  int high) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= wide || y >= high) return;
    float fx = fminf(fmaxf(fmaf(x + 0.5f, step_x, -0.5f), 0.0f), width - 1.0f);
    float fy = fminf(fmaxf(fmaf(y + 0.5f, step_y, -0.5f), 0.0f), height - 1.0f);
    int x0 = (int)fx, y0 = (int)fy, x1 = min(x0 + 1, width - 1), y1 = min(y0 + 1, height - 1);
    float wx = fx - x0, wy = fy - y0;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
        float a = in[(y0 * width + x0) * 3 + c], b = in[(y0 * width + x1) * 3 + c];
        float d = in[(y1 * width + x0) * 3 + c], e = in[(y1 * width + x1) * 3 + c];
        float top = fmaf(wx, b - a, a), bottom = fmaf(wx, e - d, d);
        out[(y * wide + x) * 3 + c] = (unsigned char)(fmaf(wy, bottom - top, top) + 0.5f);
    }
}

__device__ __forceinline__ void put(float* to, float value) { *to = value; }
__device__ __forceinline__ void put(unsigned short* to, float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(*to) : "f"(value)); }
__device__ __forceinline__ void put(signed char* to, float value) {
    int number;
    asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(number) : "f"(value));
    *to = (signed char)number;
}

template <class Type>
__device__ __forceinline__ void normalise(const unsigned char* in, int wide, int high, float3 gain, float3 bias, Type* out, int plane, int apart) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= wide || y >= high) return;
    const unsigned char* from = in + (y * wide + x) * 3;
    Type* to = out + (y * wide + x) * apart;
    put(to, fmaf(from[0], gain.x, bias.x));
    put(to + plane, fmaf(from[1], gain.y, bias.y));
    put(to + 2 * plane, fmaf(from[2], gain.z, bias.z));
}

#define NORMALISE(name, type) \
    extern "C" __global__ void normalise_nchw_##name(const unsigned char* in, int wide, int high, float3 gain, float3 bias, type* out, \
                                                     int plane) { normalise(in, wide, high, gain, bias, out, plane, 1); } \
    extern "C" __global__ void normalise_nhwc_##name(const unsigned char* in, int wide, int high, float3 gain, float3 bias, type* out) { \
        normalise(in, wide, high, gain, bias, out, 1, 3); \
    }
NORMALISE(f32, float) NORMALISE(f16, unsigned short) NORMALISE(i8, signed char)
