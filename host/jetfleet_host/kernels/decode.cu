// A YOLO head becomes its few survivors: who scores, the best of them in order, who covers whom, who stays. Nothing goes to the host between.
//
// The rule, step by step and with every rounding, is jetfleet_agent/pipeline/decode_twin.py, which is the oracle. In short, an image:
//
//   clear    nobody was found yet
//   scan     an anchor whose score is over the threshold becomes a candidate: box, score, class, anchor           a thread an anchor
//   rank     a candidate's place is the number of better ones: score descending, then anchor ascending; the best `slots` go on
//   compare  a table of bits: candidate i covers j, which is worse and of its class, with an IoU over the limit   a thread 64 pairs
//   keep     greedy: who is not covered by one that stays, stays; at most `most`                                  a block an image
//   gather   the numbers that go along with the survivors: mask coefficients, key points                          a thread a number
//
// Candidates come out of `scan` in any order, `rank` needs none: keys are unique, so the answer is the same in every run. Counting is quadratic
// in the candidates, of which a working model has some hundred; who has seen `slots` better ones stops.
// Compiled with --fmad=false, so that the twin can follow. Nothing is included, so NVRTC needs no header.

namespace decode {

typedef unsigned long long Word;

struct Rules {  // 48 bytes, in constant memory
    int anchors, classes, extra;
    int slots, words;  // candidates that go into suppression at most, and words of a row of the table
    int most, agnostic, spare;
    float threshold, iou;
    int workspace_bytes, output_bytes;  // an image
};

struct __align__(16) Slot {  // 32 bytes
    float x0, y0, x1, y1, score;
    int label, anchor, spare;
};

struct __align__(16) Header {  // of an image's output; `kept` slots follow, and behind `most` of them what goes along
    int kept, considered, passed, spare;
};

struct Scratch {  // an image's part of the workspace
    int* passed;
    Word* keys;     // of candidates as they were found
    Slot* found;
    Slot* ordered;  // the best
    Word* covered;  // the table
};

__device__ __forceinline__ Scratch scratch_of(unsigned char* workspace, unsigned int image, const Rules& rules) {
    unsigned char* at = workspace + (long long)image * rules.workspace_bytes;
    Scratch s;
    s.passed = (int*)at;
    s.keys = (Word*)(at + 16);
    s.found = (Slot*)(at + 16 + ((rules.anchors * 8 + 15) & ~15));
    s.ordered = s.found + rules.anchors;
    s.covered = (Word*)(s.ordered + rules.slots);
    return s;
}

__device__ __forceinline__ Header* output_of(unsigned char* output, unsigned int image, const Rules& rules) {
    return (Header*)(output + (long long)image * rules.output_bytes);
}

struct f32 {
    typedef float Element;
    static __device__ __forceinline__ float read(const Element* from) { return __ldg(from); }
};

struct f16 {
    typedef unsigned short Element;
    static __device__ __forceinline__ float read(const Element* from) {
        unsigned short bits = __ldg(from);
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
        return value;
    }
};

// Where a candidate's numbers lie: its first one, and from one to the next. FIRST is the number of the first class's score.
struct columns {
    enum { FIRST = 4, OBJECTNESS = 0 };
    static __device__ __forceinline__ long long start(const Rules&, int anchor) { return anchor; }
    static __device__ __forceinline__ long long step(const Rules& rules) { return rules.anchors; }
};

template <int Fixed, int Objectness>
struct rows {
    enum { FIRST = Fixed, OBJECTNESS = Objectness };
    static __device__ __forceinline__ long long start(const Rules& rules, int anchor) {
        return (long long)anchor * (Fixed + rules.classes + rules.extra);
    }
    static __device__ __forceinline__ long long step(const Rules&) { return 1; }
};

typedef columns v8;
typedef rows<4, 0> v8_rows;
typedef rows<5, 1> v5;

template <class Head, class Element>
__device__ __forceinline__ const Element* candidate(const Element* head, unsigned int image, int anchor, const Rules& rules) {
    return head + (long long)image * rules.anchors * (Head::FIRST + rules.classes + rules.extra) + Head::start(rules, anchor);
}

// What is no number scores nothing: one NaN among an anchor's classes makes its best NaN, and NaN is over no threshold.
template <class Head, class Type>
__device__ __forceinline__ void scan(const typename Type::Element* __restrict__ head, unsigned char* workspace, const Rules& rules) {
    int anchor = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (anchor >= rules.anchors) return;
    const typename Type::Element* from = candidate<Head>(head, blockIdx.y, anchor, rules);
    const long long step = Head::step(rules);
    float sure = 1.0f;
    if (Head::OBJECTNESS) {
        sure = Type::read(from + 4 * step);
        if (!(sure > rules.threshold)) return;
    }
    const typename Type::Element* chances = from + Head::FIRST * step;
    float best = Type::read(chances);
    int label = 0;
#pragma unroll 8
    for (int c = 1; c < rules.classes; ++c) {
        float chance = Type::read(chances + c * step);
        if (chance > best || chance != chance) {
            best = chance;
            label = c;
        }
    }
    float score = Head::OBJECTNESS ? best * sure : best;
    if (!(score > rules.threshold)) return;
    float x = Type::read(from), y = Type::read(from + step);
    float half_width = Type::read(from + 2 * step) * 0.5f, half_height = Type::read(from + 3 * step) * 0.5f;
    Slot slot = {x - half_width, y - half_height, x + half_width, y + half_height, score, label, anchor, 0};
    Scratch s = scratch_of(workspace, blockIdx.y, rules);
    int place = atomicAdd(s.passed, 1);
    s.keys[place] = (Word)__float_as_uint(score) << 32 | (0xffffffffu - (unsigned int)anchor);  // positive floats order as their bits do
    s.found[place] = slot;
}

__device__ __forceinline__ bool finite(float value) { return fabsf(value) <= 3.402823466e+38f; }

__device__ __forceinline__ bool has_area(const Slot& box) {
    return finite(box.x0) && finite(box.y0) && finite(box.x1) && finite(box.y1) && box.x1 > box.x0 && box.y1 > box.y0;
}

// OpenCV's rule: distance in float64, compared as float32; two specks whose areas vanish are one.
__device__ bool covers_exactly(const Slot& a, const Slot& b, float iou) {
    double both = ((double)a.x1 - a.x0) * ((double)a.y1 - a.y0) + ((double)b.x1 - b.x0) * ((double)b.y1 - b.y0);
    if (both <= 2.220446049250313e-16) return 1.0f > iou;
    double width = fmin((double)a.x1, (double)b.x1) - fmax((double)a.x0, (double)b.x0);
    double height = fmin((double)a.y1, (double)b.y1) - fmax((double)a.y0, (double)b.y0);
    double shared = width > 0.0 && height > 0.0 ? width * height : 0.0;
    float apart = (float)(1.0 - shared / (both - shared));
    return 1.0f - apart > iou;
}

// float64 runs at a thirty-second of float32's rate. float32 is within 2e-6 of the union here, so what is further from the limit is decided
// by it, and alike; what is near, tiny, or so large that float32 overflows is decided exactly.
__device__ __forceinline__ bool covers(const Slot& a, const Slot& b, float iou) {
    float width = fminf(a.x1, b.x1) - fmaxf(a.x0, b.x0), height = fminf(a.y1, b.y1) - fmaxf(a.y0, b.y0);
    float shared = width > 0.0f && height > 0.0f ? width * height : 0.0f;
    float whole = (a.x1 - a.x0) * (a.y1 - a.y0) + (b.x1 - b.x0) * (b.y1 - b.y0) - shared;
    float over = shared - iou * whole;
    if (whole > 1e-15f && fabsf(over) > 1e-5f * whole) return over > 0.0f;
    return covers_exactly(a, b, iou);
}

template <class Head, class Type>
__device__ __forceinline__ void gather(const typename Type::Element* __restrict__ head, unsigned char* output, const Rules& rules) {
    int index = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    Header* header = output_of(output, blockIdx.y, rules);
    if (index >= header->kept * rules.extra) return;
    const Slot* slots = (const Slot*)(header + 1);
    const typename Type::Element* from = candidate<Head>(head, blockIdx.y, slots[index / rules.extra].anchor, rules);
    ((float*)(slots + rules.most))[index] = Type::read(from + (Head::FIRST + rules.classes + index % rules.extra) * Head::step(rules));
}

}  // namespace decode

extern "C" __global__ void jf_decode_clear(unsigned char* workspace, const decode::Rules rules) {
    *decode::scratch_of(workspace, blockIdx.y, rules).passed = 0;
}

extern "C" __global__ void __launch_bounds__(128) jf_decode_rank(unsigned char* workspace, const decode::Rules rules) {
    decode::Scratch s = decode::scratch_of(workspace, blockIdx.y, rules);
    int index = (int)(blockIdx.x * blockDim.x + threadIdx.x), passed = *s.passed, better = 0;
    if (index >= passed) return;
    decode::Word key = s.keys[index];
    for (int other = 0; other < passed; ++other) {
        better += s.keys[other] > key;
        if (better == rules.slots) return;
    }
    s.ordered[better] = s.found[index];
}

// Only words from the diagonal on are written, and only those are read. A box without area, or not finite, covers itself, so it is out.
extern "C" __global__ void __launch_bounds__(128) jf_decode_compare(unsigned char* workspace, const decode::Rules rules) {
    decode::Scratch s = decode::scratch_of(workspace, blockIdx.z, rules);
    int row = (int)(blockIdx.y * blockDim.x + threadIdx.x), word = (int)blockIdx.x, considered = min(*s.passed, rules.slots);
    if (row >= considered || word < row / 64 || word * 64 >= considered) return;
    const decode::Slot mine = s.ordered[row];
    decode::Word bits = 0;
    if (!decode::has_area(mine)) {
        bits = word == row / 64 ? 1ull << row % 64 : 0;
    } else {
        for (int other = max(word * 64, row + 1); other < min(word * 64 + 64, considered); ++other) {
            const decode::Slot its = s.ordered[other];
            if ((rules.agnostic || its.label == mine.label) && decode::covers(mine, its, rules.iou)) bits |= 1ull << other % 64;
        }
    }
    s.covered[(long long)row * rules.words + word] = bits;
}

// 64 candidates at a time: every thread settles them among each other, then thread t adds what the survivors cover to word t.
extern "C" __global__ void __launch_bounds__(64) jf_decode_keep(unsigned char* workspace, unsigned char* output, const decode::Rules rules) {
    __shared__ decode::Word removed[64], diagonal[64];
    decode::Scratch s = decode::scratch_of(workspace, blockIdx.y, rules);
    decode::Header* header = decode::output_of(output, blockIdx.y, rules);
    decode::Slot* slots = (decode::Slot*)(header + 1);
    int t = (int)threadIdx.x, passed = *s.passed, considered = min(passed, rules.slots), kept = 0;
    removed[t] = 0;
    for (int first = 0; first < considered && kept < rules.most; first += 64) {
        int word = first / 64, rows = min(64, considered - first);
        const decode::Word* table = s.covered + (long long)first * rules.words;
        if (t < rows) diagonal[t] = table[t * rules.words + word];
        __syncthreads();
        decode::Word gone = removed[word], alive = 0;
        for (int k = 0; k < rows; ++k) {
            if ((gone | diagonal[k]) >> k & 1) continue;
            alive |= 1ull << k;
            gone |= diagonal[k];
        }
        if (t > word && t * 64 < considered) {
            decode::Word more = removed[t];
            for (int k = 0; k < rows; ++k)
                if (alive >> k & 1) more |= table[k * rules.words + t];
            removed[t] = more;
        }
        int place = kept + __popcll(alive & ((1ull << t) - 1));
        if (alive >> t & 1 && place < rules.most) slots[place] = s.ordered[first + t];
        kept += __popcll(alive);
        __syncthreads();
    }
    if (t == 0) {
        decode::Header told = {min(kept, rules.most), considered, passed, 0};
        *header = told;
    }
}

#define JF_DECODE_SCAN(head, type) \
    extern "C" __global__ void __launch_bounds__(128) \
    jf_decode_scan_##head##_##type(const decode::type::Element* from, unsigned char* workspace, const decode::Rules rules) { \
        decode::scan<decode::head, decode::type>(from, workspace, rules); \
    }

#define JF_DECODE_GATHER(head, type) \
    extern "C" __global__ void __launch_bounds__(128) \
    jf_decode_gather_##head##_##type(const decode::type::Element* from, unsigned char* output, const decode::Rules rules) { \
        decode::gather<decode::head, decode::type>(from, output, rules); \
    }
