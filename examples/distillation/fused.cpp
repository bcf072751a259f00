// What a ConvNet does beside its large convolutions, and the way back: instance norm, ReLU and 2x2
// average pooling of N maps in one call, and the 3x3 convolution of images with few channels.
//
// Maps lie in memory as N x H x W x C, C a multiple of 16. They hold float32, or bfloat16 as the
// upper halves of float32. Sums are of float32, each in one order whatever the number of threads. A
// map of one image stays in the cache between the two or three times that it is read. Vectors are
// the compiler's own, so any processor will do.

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int LANES = 16;
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

inline Floats load(const float* p) {
    Floats v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline Floats load(const uint16_t* p) {
    Halves h;
    std::memcpy(&h, p, sizeof h);
    const Words w = __builtin_convertvector(h, Words) << 16;
    Floats v;
    std::memcpy(&v, &w, sizeof v);
    return v;
}

inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

inline void store(uint16_t* p, Floats v) {
    Words w;
    std::memcpy(&w, &v, sizeof w);
    w += 0x7fff + ((w >> 16) & 1);  // to the nearest, ties to even
    const Halves h = __builtin_convertvector(w >> 16, Halves);
    std::memcpy(p, &h, sizeof h);
}

inline Floats root(Floats v) {
    for (int i = 0; i < LANES; ++i) v[i] = __builtin_sqrtf(v[i]);
    return v;
}

// Sum of the lanes, by halves.
inline float sum_of(Floats v) {
    float l[LANES];
    std::memcpy(l, &v, sizeof v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) l[i] += l[i + half];
    return l[0];
}

// V vectors of channels at a time: enough sums under way to hide how long an addition takes.
template <int V, typename In, typename Out>
void forward(const In* x, const float* gain, const float* bias, float* mean, float* inverse,
             Out* y, int64_t H, int64_t W, int64_t C, float epsilon) {
    const float share = 1.0f / (H * W);
    Floats m[V] = {}, s[V] = {}, a[V], b[V];
    for (int64_t h = 0; h < H; ++h) {  // a sum for each row keeps the rounding small
        Floats row[V] = {};
        for (int64_t w = 0; w < W; ++w)
            for (int v = 0; v < V; ++v) row[v] += load(x + (h * W + w) * C + v * LANES);
        for (int v = 0; v < V; ++v) m[v] += row[v];
    }
    for (int v = 0; v < V; ++v) m[v] *= share;
    for (int64_t h = 0; h < H; ++h) {
        Floats row[V] = {};
        for (int64_t w = 0; w < W; ++w)
            for (int v = 0; v < V; ++v) {
                const Floats d = load(x + (h * W + w) * C + v * LANES) - m[v];
                row[v] += d * d;
            }
        for (int v = 0; v < V; ++v) s[v] += row[v];
    }
    for (int v = 0; v < V; ++v) {
        const Floats r = 1.0f / root(s[v] * share + epsilon);
        store(mean + v * LANES, m[v]);
        store(inverse + v * LANES, r);
        a[v] = r * load(gain + v * LANES);
        b[v] = load(bias + v * LANES) - m[v] * a[v];
    }
    const Floats zero = {};
    for (int64_t h = 0; h < H; h += 2)
        for (int64_t w = 0; w < W; w += 2)
            for (int v = 0; v < V; ++v) {
                const In* p = x + (h * W + w) * C + v * LANES;
                Floats sum = zero;
                const In* four[] = {p, p + C, p + W * C, p + W * C + C};
                for (const In* q : four) {
                    const Floats n = a[v] * load(q) + b[v];
                    sum += n > zero ? n : zero;
                }
                store(y + (h / 2 * (W / 2) + w / 2) * C + v * LANES, sum * 0.25f);
            }
}

template <int V, typename In, typename Out>
void backward(const In* x, const float* gain, const float* bias, const float* mean,
              const float* inverse, const Out* slope, In* slope_x, float* slope_gain,
              float* slope_bias, int64_t H, int64_t W, int64_t C) {
    const Floats zero = {};
    const float share = 1.0f / (H * W);
    Floats m[V], a[V], b[V], of_bias[V] = {}, of_gain[V] = {}, c[V], d[V];
    for (int v = 0; v < V; ++v) {
        m[v] = load(mean + v * LANES);
        a[v] = load(inverse + v * LANES) * load(gain + v * LANES);
        b[v] = load(bias + v * LANES) - m[v] * a[v];
    }
    for (int64_t h = 0; h < H; h += 2) {
        Floats row_bias[V] = {}, row_gain[V] = {};
        for (int64_t w = 0; w < W; w += 2)
            for (int v = 0; v < V; ++v) {
                const In* p = x + (h * W + w) * C + v * LANES;
                const Floats g = load(slope + (h / 2 * (W / 2) + w / 2) * C + v * LANES);
                const In* four[] = {p, p + C, p + W * C, p + W * C + C};
                for (const In* q : four) {
                    const Floats value = load(q);
                    const Floats passed = a[v] * value + b[v] > zero ? g : zero;
                    row_bias[v] += passed;
                    row_gain[v] += passed * (value - m[v]);
                }
            }
        for (int v = 0; v < V; ++v) {
            of_bias[v] += row_bias[v] * 0.25f;
            of_gain[v] += row_gain[v] * 0.25f;
        }
    }
    for (int v = 0; v < V; ++v) {
        const Floats r = load(inverse + v * LANES);
        of_gain[v] *= r;
        store(slope_bias + v * LANES, of_bias[v]);
        store(slope_gain + v * LANES, of_gain[v]);
        c[v] = a[v] * r * of_gain[v] * share;
        d[v] = a[v] * of_bias[v] * share - m[v] * c[v];
    }
    for (int64_t h = 0; h < H; h += 2)
        for (int64_t w = 0; w < W; w += 2)
            for (int v = 0; v < V; ++v) {
                const int64_t at = (h * W + w) * C + v * LANES;
                const Floats g = 0.25f * a[v] *
                                 load(slope + (h / 2 * (W / 2) + w / 2) * C + v * LANES);
                const int64_t four[] = {at, at + C, at + W * C, at + W * C + C};
                for (int64_t q : four) {
                    const Floats value = load(x + q);
                    const Floats passed = a[v] * value + b[v] > zero ? g : zero;
                    store(slope_x + q, passed - (c[v] * value + d[v]));
                }
            }
}

// A pass over N images, one at a time on each thread.
template <typename Each>
void images(int64_t N, int threads, Each each) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < N; ++n) each(n);
}

// Four vectors of channels at a time, then one.
template <typename Four, typename One>
void channels(int64_t C, Four four, One one) {
    int64_t c = 0;
    for (; C - c >= 4 * LANES; c += 4 * LANES) four(c);
    for (; c < C; c += LANES) one(c);
}

// ------------------------------------------------------------------------------------------------
// The first convolution: 3x3, one zero around, K channels in. Its weights are 3 x 3 x K x C.
// ------------------------------------------------------------------------------------------------

template <int K>
std::vector<float> padded(const float* x, int64_t H, int64_t W) {
    std::vector<float> p((H + 2) * (W + 2) * K);
    for (int64_t h = 0; h < H; ++h)
        std::memcpy(&p[((h + 1) * (W + 2) + 1) * K], x + h * W * K, 4 * W * K);
    return p;
}

// P neighbouring pixels, V vectors of channels of the outcome.
template <int K, int P, int V, typename Out>
void convolve(const float* x, const float* weight, Out* y, int64_t W, int64_t C) {
    Floats sum[P][V] = {};
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3 * K; ++j) {
            const float* from = x + i * (W + 2) * K + j;
            for (int v = 0; v < V; ++v) {
                const Floats w = load(weight + (i * 3 * K + j) * C + v * LANES);
                for (int p = 0; p < P; ++p) sum[p][v] += from[p * K] * w;
            }
        }
    for (int p = 0; p < P; ++p)
        for (int v = 0; v < V; ++v) store(y + p * C + v * LANES, sum[p][v]);
}

// The slope of the weights from one image, V vectors of channels of one row of the kernel.
template <int K, int V, typename Out>
void slope_of_weights(const float* x, const Out* slope, float* slope_weight, int64_t H, int64_t W,
                      int64_t C) {
    Floats total[3 * K][V] = {};
    for (int64_t h = 0; h < H; ++h) {
        Floats row[3 * K][V] = {};
        for (int64_t w = 0; w < W; ++w) {
            const float* from = x + (h * (W + 2) + w) * K;
            for (int v = 0; v < V; ++v) {
                const Floats g = load(slope + (h * W + w) * C + v * LANES);
                for (int j = 0; j < 3 * K; ++j) row[j][v] += from[j] * g;
            }
        }
        for (int j = 0; j < 3 * K; ++j)
            for (int v = 0; v < V; ++v) total[j][v] += row[j][v];
    }
    for (int j = 0; j < 3 * K; ++j)
        for (int v = 0; v < V; ++v) store(slope_weight + j * C + v * LANES, total[j][v]);
}

// The slopes of P neighbouring pixels, the first of them at (h, w).
template <int K, int P, typename Out>
void slope_of_pixels(const float* weight, const Out* slope, const Out* nothing, float* slope_x,
                     int64_t h, int64_t w, int64_t H, int64_t W, int64_t C) {
    Floats sum[P][K] = {};
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) {
            // Pixel (h, w) has entered outcome (h + 1 - i, w + 1 - j).
            const Out* from[P];
            for (int p = 0; p < P; ++p) {
                const int64_t a = h + 1 - i, b = w + p + 1 - j;
                const bool inside = a >= 0 && a < H && b >= 0 && b < W;
                from[p] = inside ? slope + (a * W + b) * C : nothing;
            }
            const float* of = weight + (i * 3 + j) * K * C;
            for (int64_t c = 0; c < C; c += LANES) {
                Floats entry[K];
                for (int k = 0; k < K; ++k) entry[k] = load(of + k * C + c);
                for (int p = 0; p < P; ++p) {
                    const Floats g = load(from[p] + c);
                    for (int k = 0; k < K; ++k) sum[p][k] += g * entry[k];
                }
            }
        }
    for (int p = 0; p < P; ++p)
        for (int k = 0; k < K; ++k) slope_x[(h * W + w + p) * K + k] = sum_of(sum[p][k]);
}

template <int K, typename Out>
void first_forward(const float* x, const float* weight, Out* y, int64_t N, int64_t H, int64_t W,
                   int64_t C, int threads) {
    images(N, threads, [=](int64_t n) {
        const std::vector<float> image = padded<K>(x + n * H * W * K, H, W);
        for (int64_t h = 0; h < H; ++h)
            for (int64_t w = 0; w < W;) {
                const float* from = &image[(h * (W + 2) + w) * K];
                Out* to = y + ((n * H + h) * W + w) * C;
                const bool four = W - w >= 4;
                channels(
                    C,
                    [=](int64_t c) {
                        if (four) convolve<K, 4, 4>(from, weight + c, to + c, W, C);
                        else convolve<K, 1, 4>(from, weight + c, to + c, W, C);
                    },
                    [=](int64_t c) {
                        if (four) convolve<K, 4, 1>(from, weight + c, to + c, W, C);
                        else convolve<K, 1, 1>(from, weight + c, to + c, W, C);
                    });
                w += four ? 4 : 1;
            }
    });
}

// Slopes of the images, or of the weights from each image (N x 3 x 3 x K x C), or null for either.
template <int K, typename Out>
void first_backward(const float* x, const float* weight, const Out* slope, float* slope_x,
                    float* slope_weight, int64_t N, int64_t H, int64_t W, int64_t C, int threads) {
    const std::vector<Out> zeros(C);
    const Out* nothing = zeros.data();
    images(N, threads, [=](int64_t n) {
        const Out* own = slope + n * H * W * C;
        if (slope_weight) {
            const std::vector<float> image = padded<K>(x + n * H * W * K, H, W);
            for (int i = 0; i < 3; ++i)
                for (int64_t c = 0; c < C; c += 2 * LANES) {
                    const float* from = &image[i * (W + 2) * K];
                    float* to = slope_weight + (n * 9 + i * 3) * K * C + c;
                    if (C - c >= 2 * LANES) slope_of_weights<K, 2>(from, own + c, to, H, W, C);
                    else slope_of_weights<K, 1>(from, own + c, to, H, W, C);
                }
        }
        if (slope_x)
            for (int64_t h = 0; h < H; ++h)
                for (int64_t w = 0; w < W;) {
                    float* to = slope_x + n * H * W * K;
                    const bool four = W - w >= 4;
                    if (four) slope_of_pixels<K, 4>(weight, own, nothing, to, h, w, H, W, C);
                    else slope_of_pixels<K, 1>(weight, own, nothing, to, h, w, H, W, C);
                    w += four ? 4 : 1;
                }
    });
}

}  // namespace

#define BLOCK(NAME, IN, OUT)                                                                      \
    extern "C" void forward_##NAME(const IN* x, const float* gain, const float* bias, float* mean, \
                                   float* inverse, OUT* y, int64_t N, int64_t H, int64_t W,        \
                                   int64_t C, float epsilon, int threads) {                        \
        images(N, threads, [=](int64_t n) {                                                        \
            const int64_t in = n * H * W * C, out = in / 4, k = n * C;                             \
            const auto some = [=](auto way, int64_t c) {                                           \
                way(x + in + c, gain + c, bias + c, mean + k + c, inverse + k + c, y + out + c, H, \
                    W, C, epsilon);                                                                \
            };                                                                                     \
            channels(C, [=](int64_t c) { some(forward<4, IN, OUT>, c); },                          \
                     [=](int64_t c) { some(forward<1, IN, OUT>, c); });                            \
        });                                                                                        \
    }                                                                                              \
    extern "C" void backward_##NAME(const IN* x, const float* gain, const float* bias,             \
                                    const float* mean, const float* inverse, const OUT* slope,     \
                                    IN* slope_x, float* slope_gain, float* slope_bias, int64_t N,  \
                                    int64_t H, int64_t W, int64_t C, int threads) {                \
        images(N, threads, [=](int64_t n) {                                                        \
            const int64_t in = n * H * W * C, out = in / 4, k = n * C;                             \
            const auto some = [=](auto way, int64_t c) {                                           \
                way(x + in + c, gain + c, bias + c, mean + k + c, inverse + k + c,                 \
                    slope + out + c, slope_x + in + c, slope_gain + k + c, slope_bias + k + c, H,  \
                    W, C);                                                                         \
            };                                                                                     \
            channels(C, [=](int64_t c) { some(backward<4, IN, OUT>, c); },                         \
                     [=](int64_t c) { some(backward<1, IN, OUT>, c); });                           \
        });                                                                                        \
    }

BLOCK(float_float, float, float)
BLOCK(half_half, uint16_t, uint16_t)
BLOCK(half_float, uint16_t, float)

#define FIRST(NAME, K, OUT)                                                                      \
    extern "C" void first_forward_##NAME(const float* x, const float* weight, OUT* y, int64_t N, \
                                         int64_t H, int64_t W, int64_t C, int threads) {         \
        first_forward<K>(x, weight, y, N, H, W, C, threads);                                     \
    }                                                                                            \
    extern "C" void first_backward_##NAME(const float* x, const float* weight, const OUT* slope, \
                                          float* slope_x, float* slope_weight, int64_t N,        \
                                          int64_t H, int64_t W, int64_t C, int threads) {        \
        first_backward<K>(x, weight, slope, slope_x, slope_weight, N, H, W, C, threads);         \
    }

FIRST(1_float, 1, float)
FIRST(3_float, 3, float)
FIRST(1_half, 1, uint16_t)
FIRST(3_half, 3, uint16_t)
