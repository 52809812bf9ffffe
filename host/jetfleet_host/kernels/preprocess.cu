// A camera's frame becomes the model's tensor in one pass: sample, convert, normalise, store. One launch a batch.
//
// The formula, step by step and with every rounding, is jetfleet_agent/pipeline/kernel_twin.py, which is the oracle. In short, for
// tensor pixel (x, y) inside the picture, fma = one rounding to float32, positions in 1/32768 of a pixel:
//
//   fx = int(clamp(fma(x + 0.5, step_x, start_x), low_x, high_x))     x0 = fx >> 15   wx = fx & 32767   (y alike; high < the last pixel)
//   w11 = (wx * wy + 16384) >> 15   w10 = wy - w11   w01 = wx - w11   w00 = 32768 - wx - w10     p = w00 p00 + w01 p01 + w10 p10 + w11 p11
//   YUV only, once a pixel:  t = clamp(fma(Y, luma, fma(U, from_u[c], fma(V, from_v[c], base[c]))), 0, 1)
//   out = fma(t, gain[c], bias[c])                               float16: nearest even; int8: nearest even, saturated
//
// p is a whole number below 2^23: the blend is exact, and its 1/32768 stands in the factors that follow. Four weights are two words, made once
// a pixel for all planes, and a plane is two dot products of them with bytes (dp2a). Chroma is taken at the luma's own taps (x0 >> 1,
// (x0 + 1) >> 1): what converting first and resizing after would give, with a quarter of the conversions. Clamping to 0 .. 1 costs nothing,
// it is part of the multiply-add. Compiled with --fmad=false: a fused multiply-add stands where it is written and nowhere else.
//
// A thread makes four neighbours of a row, so that stores are 16 (float32), 8 (float16) or 4 bytes (int8). The launch covers the picture
// only; the band around it is written by jf_fill_*, once a buffer. Nothing is included, so NVRTC needs no header.

struct __align__(16) Frame {  // one picture of the batch, 80 bytes, in device memory: a captured graph stays valid while frames change
    const unsigned char* first;   // the picture, or its luma plane
    const unsigned char* second;  // NV12's chroma plane
    int first_pitch, second_pitch;  // bytes from row to row
    int left, top, width, height;   // where the picture lies in the tensor
    float step_x, start_x, low_x, high_x;  // in 1/32768 of a pixel
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

// A position: the lower of its two neighbours, and the weight of the upper one, 0 .. 32767.
struct Tap {
    int low;
    unsigned int weight;
};

__device__ __forceinline__ Tap tap(float middle, float step, float start, float low, float high) {
    int at = (int)fminf(fmaxf(fmaf(middle, step, start), low), high);
    Tap t = {at >> 15, (unsigned int)at & 32767u};
    return t;
}

// The weights of a pixel's four neighbours, 16 bits each: the left one's below the right one's. They add up to 32768.
struct Weights {
    unsigned int upper, lower;
};

__device__ __forceinline__ Weights weights(unsigned int wx, unsigned int wy) {
    unsigned int both = (wx * wy + 16384u) >> 15;
    Weights w;
    w.lower = wy + both * 65535u;  // wy - both, and both above it
    w.upper = 32768u + wx * 65535u - w.lower;
    return w;
}

// The blend, as a float. It starts from the bits of 2^23, to which a whole number below 2^23 is added as into a float's mantissa: no
// conversion, which would run at an eighth of the rate of the rest. `low` takes the lower two bytes of each word, `high` the upper two.
#define RAISED 0x4b000000u
__device__ __forceinline__ unsigned int dot_low(unsigned int halves, unsigned int bytes, unsigned int sum) {
    asm("dp2a.lo.u32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(halves), "r"(bytes));
    return sum;
}
__device__ __forceinline__ unsigned int dot_high(unsigned int halves, unsigned int bytes, unsigned int sum) {
    asm("dp2a.hi.u32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(halves), "r"(bytes));
    return sum;
}
__device__ __forceinline__ float lowered(unsigned int sum) { return __uint_as_float(sum) - 8388608.0f; }
__device__ __forceinline__ float blend_low(const Weights& w, unsigned int upper, unsigned int lower) {
    return lowered(dot_low(w.upper, upper, dot_low(w.lower, lower, RAISED)));
}
__device__ __forceinline__ float blend_high(const Weights& w, unsigned int upper, unsigned int lower) {
    return lowered(dot_high(w.upper, upper, dot_high(w.lower, lower, RAISED)));
}

template <class Word>
__device__ __forceinline__ unsigned int load(const unsigned char* from) {
    return __ldg((const Word*)from);
}

// Two neighbours' bytes, `apart` bytes from each other, as the lower two of a word.
__device__ __forceinline__ unsigned int two(const unsigned char* from, int apart) {
    return __byte_perm(load<unsigned char>(from), load<unsigned char>(from + apart), 0x0040);
}

__device__ __forceinline__ void to_colors(float y, float u, float v, const Rules& rules, float* out) {
#pragma unroll
    for (int c = 0; c < 3; ++c) out[c] = __saturatef(fmaf(y, rules.luma, fmaf(u, rules.from_u[c], fmaf(v, rules.from_v[c], rules.base[c]))));
}

struct Rows {  // the two rows that a row of the tensor is made of, in the first plane and in the second
    const unsigned char *upper, *lower, *upper_chroma, *lower_chroma;
};

__device__ __forceinline__ const unsigned char* row_of(const unsigned char* plane, int row, int pitch) {
    const unsigned char* start = plane + (long long)row * pitch;
    asm("" : "+l"(start));  // keeps the compiler from spreading this product over every load
    return start;
}

struct nv12 {
    static __device__ __forceinline__ void sample(const Rows& rows, const Rules& rules, int x, const Weights& w, float* out) {
        unsigned int first = (unsigned int)x & ~1u, second = (unsigned int)(x + 1) & ~1u;
        unsigned int c = __byte_perm(load<unsigned short>(rows.upper_chroma + first), load<unsigned short>(rows.upper_chroma + second), 0x5140);
        unsigned int d = __byte_perm(load<unsigned short>(rows.lower_chroma + first), load<unsigned short>(rows.lower_chroma + second), 0x5140);
        float y = blend_low(w, two(rows.upper + (unsigned int)x, 1), two(rows.lower + (unsigned int)x, 1));
        to_colors(y, blend_low(w, c, d), blend_high(w, c, d), rules, out);
    }
};

struct yuyv {
    static __device__ __forceinline__ void sample(const Rows& rows, const Rules& rules, int x, const Weights& w, float* out) {
        unsigned int first = (unsigned int)(x >> 1) << 2, second = (unsigned int)((x + 1) >> 1) << 2;
        unsigned int a0 = load<unsigned int>(rows.upper + first), a1 = load<unsigned int>(rows.upper + second);
        unsigned int b0 = load<unsigned int>(rows.lower + first), b1 = load<unsigned int>(rows.lower + second);
        unsigned int luma = x & 1 ? 0x0042 : 0x0060;
        float y = blend_low(w, __byte_perm(a0, a1, luma), __byte_perm(b0, b1, luma));
        unsigned int c = __byte_perm(a0, a1, 0x7351), d = __byte_perm(b0, b1, 0x7351);
        to_colors(y, blend_low(w, c, d), blend_high(w, c, d), rules, out);
    }
};

struct bgr {
    static __device__ __forceinline__ void sample(const Rows& rows, const Rules& rules, int x, const Weights& w, float* out) {
        const unsigned char *upper = rows.upper + (unsigned int)x * 3u, *lower = rows.lower + (unsigned int)x * 3u;
        float p[3];
#pragma unroll
        for (int c = 0; c < 3; ++c) p[c] = blend_low(w, two(upper + c, 3), two(lower + c, 3));
        out[0] = rules.order[0] ? p[2] : p[0];
        out[1] = p[1];
        out[2] = rules.order[0] ? p[0] : p[2];
    }
};

struct rgba {
    static __device__ __forceinline__ void sample(const Rows& rows, const Rules& rules, int x, const Weights& w, float* out) {
        const unsigned char *upper = rows.upper + (unsigned int)x * 4u, *lower = rows.lower + (unsigned int)x * 4u;
        unsigned int a0 = load<unsigned int>(upper), a1 = load<unsigned int>(upper + 4);
        unsigned int b0 = load<unsigned int>(lower), b1 = load<unsigned int>(lower + 4);
        unsigned int ends = rules.order[0] ? 0x4062 : 0x6240;  // channels 0 and 2, each of both pixels
        unsigned int c = __byte_perm(a0, a1, ends), d = __byte_perm(b0, b1, ends);
        out[0] = blend_low(w, c, d);
        out[1] = blend_low(w, __byte_perm(a0, a1, 0x0051), __byte_perm(b0, b1, 0x0051));
        out[2] = blend_high(w, c, d);
    }
};

struct gray {
    static __device__ __forceinline__ void sample(const Rows& rows, const Rules&, int x, const Weights& w, float* out) {
        out[0] = out[1] = out[2] = blend_low(w, two(rows.upper + (unsigned int)x, 1), two(rows.lower + (unsigned int)x, 1));
    }
};

__device__ __forceinline__ unsigned int half_bits(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ unsigned int two_halves(float low, float high) {
#if __CUDA_ARCH__ >= 800
    unsigned int bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
#else
    return half_bits(low) | half_bits(high) << 16;
#endif
}

__device__ __forceinline__ int nearest(float value) {  // nearest even
    int number;
    asm("cvt.rni.s32.f32 %0, %1;" : "=r"(number) : "f"(value));
    return number;
}

// Two numbers saturated to -128 .. 127 as a word's lower bytes, the lower two bytes of `above` over them.
__device__ __forceinline__ unsigned int two_bytes(float low, float high, unsigned int above) {
    unsigned int bits;
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(bits) : "r"(nearest(high)), "r"(nearest(low)), "r"(above));
    return bits;
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
        Pair p = {two_halves(a, b), two_halves(c, d)};
        *(Pair*)to = p;
    }
};

struct i8 {
    typedef unsigned char Element;
    static __device__ __forceinline__ void one(Element* to, float a) { *to = (unsigned char)two_bytes(a, a, 0); }
    static __device__ __forceinline__ void four(Element* to, float a, float b, float c, float d) {
        *(unsigned int*)to = two_bytes(a, b, two_bytes(c, d, 0));
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
    Tap ty = tap((float)row + 0.5f, f.step_y, f.start_y, f.low_y, f.high_y);
    Rows rows = {row_of(f.first, ty.low, f.first_pitch), row_of(f.first, ty.low + 1, f.first_pitch),
                 row_of(f.second, ty.low >> 1, f.second_pitch), row_of(f.second, (ty.low + 1) >> 1, f.second_pitch)};
    float middle = (float)(x - f.left) + 0.5f, values[4][3];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        Tap tx = tap(middle + (float)i, f.step_x, f.start_x, f.low_x, f.high_x);
        Format::sample(rows, rules, tx.low, weights(tx.weight, ty.weight), values[i]);
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
