// A camera's frame becomes the model's tensor in one pass: sample, convert, normalise, store. One launch a batch.
//
// The formula, step by step and with every rounding, is jetfleet_agent/pipeline/kernel_twin.py, which is the oracle. In short, for
// tensor pixel (x, y) inside the picture, in float32, fma = one rounding:
//
//   fx = clamp(fma(x + 0.5, step_x, start_x), low_x, high_x)     x0 = int(fx)   wx = fx - x0   x1 = min(x0 + 1, high_x)   (y alike)
//   top = fma(wx, p01 - p00, p00)   bottom = fma(wx, p11 - p10, p10)   p = fma(wy, bottom - top, top)
//   YUV only, once a pixel:  t = clamp(fma(Y, luma, fma(U, from_u[c], fma(V, from_v[c], base[c]))), 0, 255)
//   out = fma(t, gain[c], bias[c])                               float16: nearest even; int8: nearest even, saturated
//
// Chroma is taken at the luma's own taps (x0 >> 1, x1 >> 1): what converting first and resizing after would give, with a quarter of the
// conversions. Compiled with --fmad=false: a fused multiply-add stands where it is written and nowhere else, so that the twin can follow.
//
// A thread makes four neighbours of a row, so that stores are 16 (float32), 8 (float16) or 4 bytes (int8). The launch covers the picture
// only; the band around it is written by jf_fill_*, once a buffer. Nothing is included, so NVRTC needs no header.

struct __align__(16) Frame {  // one picture of the batch, 80 bytes, in device memory: a captured graph stays valid while frames change
    const unsigned char* first;   // the picture, or its luma plane
    const unsigned char* second;  // NV12's chroma plane
    int first_pitch, second_pitch;  // bytes from row to row
    int left, top, width, height;   // where the picture lies in the tensor
    float step_x, start_x, low_x, high_x;
    float step_y, start_y, low_y, high_y;
    long long offset;  // of this picture's tensor in the output, in elements
};

struct Rules {  // the same for all pictures, 100 bytes, in constant memory
    int width, height;  // of the tensor
    int aligned;        // 1: rows start at multiples of four elements
    int order[3];       // which byte of a pixel is tensor channel c (BGR, RGBA)
    float luma, from_u[3], from_v[3], base[3];
    float gain[3], bias[3];
    float pad[3];       // the band, normalised already
};

struct Tap {
    int low, high;
    float weight;
};

__device__ __forceinline__ Tap tap(float at, float step, float start, float low, float high) {
    float f = fminf(fmaxf(fmaf(at + 0.5f, step, start), low), high);
    Tap t;
    t.low = (int)f;
    t.high = min(t.low + 1, (int)high);
    t.weight = f - (float)t.low;
    return t;
}

// A byte as the float 2^23 + byte, without a conversion: those run at an eighth of the rate of the rest. Differences of two are exact.
#define RAISED 8388608.0f
__device__ __forceinline__ float raised(unsigned int value) { return __uint_as_float(0x4b000000u | value); }
__device__ __forceinline__ float byte(unsigned int word, int index) { return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7540 + index)); }

template <class Word>
__device__ __forceinline__ unsigned int load(const unsigned char* row, int offset) {
    return __ldg((const Word*)(row + (unsigned int)offset));
}

__device__ __forceinline__ float load_byte(const unsigned char* row, int offset) { return raised(load<unsigned char>(row, offset)); }

__device__ __forceinline__ float blend(float p00, float p01, float p10, float p11, float wx, float wy) {
    float top = fmaf(wx, p01 - p00, p00 - RAISED);
    float bottom = fmaf(wx, p11 - p10, p10 - RAISED);
    return fmaf(wy, bottom - top, top);
}

__device__ __forceinline__ void to_colors(float y, float u, float v, const Rules& rules, float* out) {
#pragma unroll
    for (int c = 0; c < 3; ++c) {
        float t = fmaf(y, rules.luma, fmaf(u, rules.from_u[c], fmaf(v, rules.from_v[c], rules.base[c])));
        out[c] = fminf(fmaxf(t, 0.0f), 255.0f);
    }
}

struct Rows {  // the two rows that a row of the tensor is made of, in the first plane and in the second
    const unsigned char *upper, *lower, *upper_chroma, *lower_chroma;
    float weight;
};

__device__ __forceinline__ const unsigned char* row_of(const unsigned char* plane, int row, int pitch) {
    const unsigned char* start = plane + (long long)row * pitch;
    asm("" : "+l"(start));  // keeps the compiler from spreading this product over every load
    return start;
}

struct nv12 {
    static __device__ __forceinline__ void sample(const Rows& rows, const Rules& rules, const Tap& t, float* out) {
        int xl = t.low & ~1, xh = t.high & ~1;
        unsigned int c0 = load<unsigned short>(rows.upper_chroma, xl), c1 = load<unsigned short>(rows.upper_chroma, xh);
        unsigned int d0 = load<unsigned short>(rows.lower_chroma, xl), d1 = load<unsigned short>(rows.lower_chroma, xh);
        float y = blend(load_byte(rows.upper, t.low), load_byte(rows.upper, t.high), load_byte(rows.lower, t.low),
                        load_byte(rows.lower, t.high), t.weight, rows.weight);
        float u = blend(byte(c0, 0), byte(c1, 0), byte(d0, 0), byte(d1, 0), t.weight, rows.weight);
        float v = blend(byte(c0, 1), byte(c1, 1), byte(d0, 1), byte(d1, 1), t.weight, rows.weight);
        to_colors(y, u, v, rules, out);
    }
};

struct yuyv {
    static __device__ __forceinline__ void sample(const Rows& rows, const Rules& rules, const Tap& t, float* out) {
        int xl = (t.low >> 1) << 2, xh = (t.high >> 1) << 2, yl = (t.low & 1) << 1, yh = (t.high & 1) << 1;
        unsigned int a0 = load<unsigned int>(rows.upper, xl), a1 = load<unsigned int>(rows.upper, xh);
        unsigned int b0 = load<unsigned int>(rows.lower, xl), b1 = load<unsigned int>(rows.lower, xh);
        float y = blend(byte(a0, yl), byte(a1, yh), byte(b0, yl), byte(b1, yh), t.weight, rows.weight);
        float u = blend(byte(a0, 1), byte(a1, 1), byte(b0, 1), byte(b1, 1), t.weight, rows.weight);
        float v = blend(byte(a0, 3), byte(a1, 3), byte(b0, 3), byte(b1, 3), t.weight, rows.weight);
        to_colors(y, u, v, rules, out);
    }
};

struct bgr {
    static __device__ __forceinline__ void sample(const Rows& rows, const Rules& rules, const Tap& t, float* out) {
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            int xl = t.low * 3 + rules.order[c], xh = t.high * 3 + rules.order[c];
            out[c] = blend(load_byte(rows.upper, xl), load_byte(rows.upper, xh), load_byte(rows.lower, xl), load_byte(rows.lower, xh),
                           t.weight, rows.weight);
        }
    }
};

struct rgba {
    static __device__ __forceinline__ void sample(const Rows& rows, const Rules& rules, const Tap& t, float* out) {
        unsigned int a0 = load<unsigned int>(rows.upper, t.low * 4), a1 = load<unsigned int>(rows.upper, t.high * 4);
        unsigned int b0 = load<unsigned int>(rows.lower, t.low * 4), b1 = load<unsigned int>(rows.lower, t.high * 4);
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            int k = rules.order[c];
            out[c] = blend(byte(a0, k), byte(a1, k), byte(b0, k), byte(b1, k), t.weight, rows.weight);
        }
    }
};

struct gray {
    static __device__ __forceinline__ void sample(const Rows& rows, const Rules&, const Tap& t, float* out) {
        out[0] = out[1] = out[2] = blend(load_byte(rows.upper, t.low), load_byte(rows.upper, t.high), load_byte(rows.lower, t.low),
                                         load_byte(rows.lower, t.high), t.weight, rows.weight);
    }
};

__device__ __forceinline__ unsigned int half_bits(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ unsigned int byte_bits(float value) {  // nearest even, saturated to -128 .. 127
    int number;
    asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(number) : "f"(value));
    return (unsigned int)number & 255u;
}

struct __align__(16) Quad { float x, y, z, w; };
struct __align__(8) Pair { unsigned int x, y; };

struct f32 {
    typedef float Element;
    static __device__ __forceinline__ void one(Element* to, float a) { *to = a; }
    static __device__ __forceinline__ void four(Element* to, float a, float b, float c, float d) {
        Quad q = {a, b, c, d};
        *(Quad*)to = q;
    }
};

struct f16 {
    typedef unsigned short Element;
    static __device__ __forceinline__ void one(Element* to, float a) { *to = (unsigned short)half_bits(a); }
    static __device__ __forceinline__ void four(Element* to, float a, float b, float c, float d) {
        Pair p = {half_bits(a) | half_bits(b) << 16, half_bits(c) | half_bits(d) << 16};
        *(Pair*)to = p;
    }
};

struct i8 {
    typedef unsigned char Element;
    static __device__ __forceinline__ void one(Element* to, float a) { *to = (unsigned char)byte_bits(a); }
    static __device__ __forceinline__ void four(Element* to, float a, float b, float c, float d) {
        *(unsigned int*)to = byte_bits(a) | byte_bits(b) << 8 | byte_bits(c) << 16 | byte_bits(d) << 24;
    }
};

struct nchw {
    static __device__ __forceinline__ long long at(const Rules& r, int x, int y, int c) {
        return ((long long)c * r.height + y) * r.width + x;
    }
    template <class Type>
    static __device__ __forceinline__ void store(typename Type::Element* to, const Rules& r, int x, int y, const float v[4][3]) {
#pragma unroll
        for (int c = 0; c < 3; ++c) Type::four(to + at(r, x, y, c), v[0][c], v[1][c], v[2][c], v[3][c]);
    }
};

struct nhwc {
    static __device__ __forceinline__ long long at(const Rules& r, int x, int y, int c) {
        return ((long long)y * r.width + x) * 3 + c;
    }
    template <class Type>
    static __device__ __forceinline__ void store(typename Type::Element* to, const Rules& r, int x, int y, const float v[4][3]) {
        typename Type::Element* row = to + at(r, x, y, 0);
        Type::four(row, v[0][0], v[0][1], v[0][2], v[1][0]);
        Type::four(row + 4, v[1][1], v[1][2], v[2][0], v[2][1]);
        Type::four(row + 8, v[2][2], v[3][0], v[3][1], v[3][2]);
    }
};

// Grid: x covers the widest picture of the batch in quads that start at multiples of four, y its rows, z the pictures. A row a block, so
// that what belongs to the row is the same for all threads.
template <class Format, class Layout, class Type>
__device__ __forceinline__ void preprocess(const Frame* __restrict__ frames, typename Type::Element* __restrict__ out, const Rules& rules) {
    const Frame f = frames[blockIdx.z];
    int x = (f.left & ~3) + 4 * (int)(blockIdx.x * blockDim.x + threadIdx.x);
    int row = (int)blockIdx.y, right = f.left + f.width;
    if (row >= f.height || x >= right) return;
    Tap ty = tap((float)row, f.step_y, f.start_y, f.low_y, f.high_y);
    Rows rows = {row_of(f.first, ty.low, f.first_pitch), row_of(f.first, ty.high, f.first_pitch),
                 row_of(f.second, ty.low >> 1, f.second_pitch), row_of(f.second, ty.high >> 1, f.second_pitch), ty.weight};
    float values[4][3];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        Tap tx = tap((float)(x + i - f.left), f.step_x, f.start_x, f.low_x, f.high_x);
        Format::sample(rows, rules, tx, values[i]);
#pragma unroll
        for (int c = 0; c < 3; ++c) values[i][c] = fmaf(values[i][c], rules.gain[c], rules.bias[c]);
    }
    typename Type::Element* to = out + f.offset;
    if (rules.aligned && x >= f.left && x + 4 <= right) {
        Layout::template store<Type>(to, rules, x, f.top + row, values);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (x + i < f.left || x + i >= right) continue;
        for (int c = 0; c < 3; ++c) Type::one(to + Layout::at(rules, x + i, f.top + row, c), values[i][c]);
    }
}

// The band: the whole tensor gets its pad value, once a buffer. Grid: x and y cover the tensor, z is the picture.
template <class Layout, class Type>
__device__ __forceinline__ void fill(typename Type::Element* __restrict__ out, const Rules& rules) {
    int x = (int)(blockIdx.x * blockDim.x + threadIdx.x), y = (int)(blockIdx.y * blockDim.y + threadIdx.y);
    if (x >= rules.width || y >= rules.height) return;
    typename Type::Element* to = out + (long long)blockIdx.z * 3 * rules.width * rules.height;
    for (int c = 0; c < 3; ++c) Type::one(to + Layout::at(rules, x, y, c), rules.pad[c]);
}

#define JF_PREPROCESS(format, layout, type) \
    extern "C" __global__ void __launch_bounds__(256) \
    jf_preprocess_##format##_##layout##_##type(const Frame* frames, type::Element* out, const Rules rules) { \
        preprocess<format, layout, type>(frames, out, rules); \
    }

#define JF_FILL(layout, type) \
    extern "C" __global__ void __launch_bounds__(256) jf_fill_##layout##_##type(type::Element* out, const Rules rules) { \
        fill<layout, type>(out, rules); \
    }
