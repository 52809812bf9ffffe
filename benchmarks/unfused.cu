// What a chain of separate kernels does for the same tensor: colours of the whole frame, then resize, then normalise. A thread a pixel, as in
// the usual libraries. Only benchmarks/kernels.py compiles it, to count its instructions.

extern "C" __global__ void convert(const unsigned char* luma, const unsigned char* chroma, int pitch, int width, int height,
                                   unsigned char* out) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    float l = 1.164f * (luma[y * pitch + x] - 16.0f);
    float u = chroma[(y >> 1) * pitch + (x & ~1)] - 128.0f, v = chroma[(y >> 1) * pitch + (x | 1)] - 128.0f;
    unsigned char* to = out + (y * width + x) * 3;
    to[0] = (unsigned char)fminf(fmaxf(l + 1.596f * v, 0.0f), 255.0f);
    to[1] = (unsigned char)fminf(fmaxf(l - 0.392f * u - 0.813f * v, 0.0f), 255.0f);
    to[2] = (unsigned char)fminf(fmaxf(l + 2.017f * u, 0.0f), 255.0f);
}

extern "C" __global__ void resize(const unsigned char* in, int width, int height, float step_x, float step_y, unsigned char* out, int wide,
                                  int high) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= wide || y >= high) return;
    float fx = fminf(fmaxf((x + 0.5f) * step_x - 0.5f, 0.0f), width - 1.0f), fy = fminf(fmaxf((y + 0.5f) * step_y - 0.5f, 0.0f), height - 1.0f);
    int x0 = (int)fx, y0 = (int)fy, x1 = min(x0 + 1, width - 1), y1 = min(y0 + 1, height - 1);
    float wx = fx - x0, wy = fy - y0;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
        float a = in[(y0 * width + x0) * 3 + c], b = in[(y0 * width + x1) * 3 + c];
        float d = in[(y1 * width + x0) * 3 + c], e = in[(y1 * width + x1) * 3 + c];
        float top = a + wx * (b - a), bottom = d + wx * (e - d);
        out[(y * wide + x) * 3 + c] = (unsigned char)(top + wy * (bottom - top) + 0.5f);
    }
}

extern "C" __global__ void normalise(const unsigned char* in, int wide, int high, float3 gain, float3 bias, unsigned short* out, int plane) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= wide || y >= high) return;
    const unsigned char* from = in + (y * wide + x) * 3;
    float values[3] = {from[0] * gain.x + bias.x, from[1] * gain.y + bias.y, from[2] * gain.z + bias.z};
#pragma unroll
    for (int c = 0; c < 3; ++c) asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out[c * plane + y * wide + x]) : "f"(values[c]));
}
