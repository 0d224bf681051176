// Small groups of a grouped convolution, depthwise ones above all: a lane is a patch. The pixels of one group, a strip
// of rows at a time, are copied into planes that stay in cache; patch o reads the pixels o + taps, so that neither
// patches nor responses are written to memory.
//
// A stride of (s, t) makes s x t planes of a channel: the pixels that one tap reads from patch to patch lie next to one
// another. A row of patches is as long as a row of a plane; its last entries are no patches, `valid` is 0 there.
#pragma once

#include "cpu/products/panels.h"

namespace hebbkern {

template <class T>
class Planes {
 public:
  // Every neuron's products with every tap are computed, twice: with more neurons than this, sorting patches by their
  // winner costs less, and products of more inputs are bound by arithmetic anyway.
  static bool suit(const Geometry& g) { return g.groups > 1 && g.neurons <= 16 && g.inputs() <= 512; }

  // Patches of one group in some rows of one image.
  struct Block {
    int64_t part, group, image, row, rows;
    int64_t length;  // of arrays of patches, whole vectors
    const T *x, *valid;
    T bound;  // the largest |pixel|
  };

  Planes(const char* op, const Tensor& x, const Geometry& g);

  const Geometry g;
  const int64_t pitch;  // from a row of patches to the next
  const int64_t parts;  // of the images, at least 1: what is summed over patches is summed for each, block by block
  std::vector<int64_t> taps;  // [inputs], in the order of Source
  int64_t longest() const { return full_.length; }

  // Calls work(block) for every block, where work is make() for each hand-out.
  template <class F>
  void each(const F& make) const {
    const int64_t share = (g.batch + parts - 1) / parts, together = (g.groups + bundles_ - 1) / bundles_;
    const double products = double(g.patches()) * double(g.groups) * double(g.neurons) * double(g.inputs());
    const SingleThread single(products < 1 << 20);  // multiply-adds that are worth waking a thread for
    parallel(parts * bundles_, [&](int64_t item) {
      auto work = make();
      const Scratch<T> memory(size_);
      std::fill_n(memory.get(), size_, T(0));
      const int64_t part = item / bundles_, bundle = item % bundles_;
      const int64_t last = std::min(g.groups, (bundle + 1) * together);
      for (int64_t image = part * share; image < std::min(g.batch, (part + 1) * share); ++image)
        for (int64_t first = bundle * together; first < last; first += at_once_)
          for (int64_t row = 0; row < g.out_h(); row += full_.rows) {
            const Strip& strip = row + full_.rows < g.out_h() ? full_ : last_;
            const int64_t end = std::min(last, first + at_once_);
            const T bound = copy(image, first, end - first, row, strip, memory.get());
            const T* x = memory.get();
            for (int64_t group = first; group < end; ++group, x += of_group_)
              work(Block{part, group, image, row, strip.rows, strip.length, x, strip.valid.data(), bound});
          }
    });
  }

  // Calls f(entry of the block's arrays, number of the patch in its group) for every patch of a block.
  template <class F>
  void each_patch(const Block& block, const F& f) const {
    for (int64_t i = 0; i < block.rows; ++i)
      for (int64_t j = 0; j < g.out_w(); ++j)
        f(i * pitch + j, block.image * g.per_image() + (block.row + i) * g.out_w() + j);
  }

 private:
  struct Strip {
    int64_t rows, length;
    std::vector<T> valid;
  };
  Strip strip_of(int64_t rows) const;
  T copy(int64_t image, int64_t group, int64_t groups, int64_t row, const Strip& strip, T* to) const;
  template <class S>
  void copy_planes(const S* from, int64_t channels, int64_t row, int64_t rows, int64_t column, T* to) const;

  const char* const op_;
  const Tensor& x_;
  const int64_t bundles_;  // of groups
  const int64_t at_once_;  // groups that are copied at a time: of a channels-last image those that share cache lines
  int64_t plane_, of_group_, size_;  // entries of a plane, of a group's planes and of all that are copied at a time
  Strip full_, last_;
};

// The prepared weights of the neurons that take part, group by group.
template <class T>
struct PlaneWeights {
  PlaneWeights(const char* op, const Geometry& g, const Tensor& weight, const OptionalTensor& eligible,
               const Prepare& prepare);
  bool may_overflow(double largest) const { return sums_may_overflow(largest, bound, inputs); }
  int64_t count(int64_t group) const { return first[group + 1] - first[group]; }

  const int64_t inputs;
  std::vector<int32_t> names;  // within the group
  std::vector<int64_t> first;  // of each group, and of the end
  Scratch<T> rows;             // [names][inputs]
  Scratch<T> wsum;             // [names]
  T bound = 0;
};

// Offsets, scales and norms of the patches of a block, as of Moments.
template <class T>
struct Spread {
  Spread(const Planes<T>& planes, Patches patches, bool norms);
  bool wanted() const { return !raw || norms; }
  void of(const char* op, const typename Planes<T>::Block& block);
  // Of the block that `of` has seen: no neuron wins a blank patch or learns from it. Blank are raw patches of zeros,
  // and flat patches of other kinds.
  void drop_blank(const typename Planes<T>::Block& block, int64_t ranks, Index<T>* winners) const;
  // Sums over c [length] times the pixels of each tap become sums of patches that are not raw: c is scaled, and
  // sum of c * offset subtracted from all of them beforehand.
  void prepare(const typename Planes<T>::Block& block, T* c, double* sums) const;

  const Planes<T>& planes;
  const bool raw, standardised, norms;
  Scratch<T> offset, scale, norm;
};

// Adds the sums of all parts, in their order, to those of the first.
inline void join_parts(std::vector<double>& sums, int64_t parts) {
  const size_t size = sums.size() / parts;
  for (size_t i = size; i < sums.size(); ++i) sums[i % size] += sums[i];
}

template <class T>
bool finite_where(const T* values, const T* valid, int64_t length) {
  bool sound = true;
  for (int64_t o = 0; o < length; ++o) sound &= valid[o] == 0 || std::isfinite(values[o]);
  return sound;
}

}  // namespace hebbkern
