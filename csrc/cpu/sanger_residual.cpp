// sanger with fewer patches than neurons: keep the residual R = X - Y W of the panels of neurons passed so far and walk
// down them, sum_b = Y_b' R - tril(Y_b' Y_b) W_b, then R -= Y_b W_b. No matrix of neurons x neurons. R is kept as the
// register tile reads and writes it: inputs down, panels of patches across.
#include <algorithm>

#include "sanger.h"

namespace hebbkern {

// R = X, with the patches centred or standardised.
template <class T>
void Sanger<T>::residual_images(int64_t count) {
  std::fill_n(rt_.get(), round_up(count, width_) * rows_of_sum_, T(0));
  parallel((count + width_ - 1) / width_, [&](int64_t q) {
    T* to = rt_.get() + q * rows_of_sum_ * width_;
    for (int64_t p = q * width_; p < std::min(count, (q + 1) * width_); ++p) {
      const T* x = source_.x + bases_[p];
      const T offset = moments_ ? moments_->offset[p] : T(0), scale = moments_ ? moments_->scale[p] : T(1);
      for (int64_t n = 0; n < inputs_; ++n) to[n * width_ + p % width_] = (x[source_.offset[n]] - offset) * scale;
    }
  });
}

// sum_b = Y_b' R - tril(Y_b' Y_b) W_b.
template <class T>
void Sanger<T>::residual_sum(int64_t panel, int64_t count) {
  const int vectors = panels_.vectors(panel);
  const int64_t neurons = panels_.valid(panel), tiles = rows_of_sum_ / kernel_.rows;
  T* c = gram_.get();
  for (int64_t p = 0; p < count; ++p) steps_[p] = p * width_;
  for (int64_t i = 0; i < neurons; i += kernel_.rows) {
    const T* rows[8];
    for (int r = 0; r < kernel_.rows; ++r) rows[r] = response(panel) + std::min(i + r, neurons - 1);
    kernel_.tile(rows, steps_.get(), count, response(panel), width_, vectors, c + i * width_, width_, false);
  }
  for (int64_t i = 0; i < neurons; ++i)
    for (int64_t j = 0; j < width_; ++j) c[i * width_ + j] = i <= j && j < neurons ? -c[i * width_ + j] : T(0);
  for (int64_t p = 0; p < count; ++p) steps_[p] = p / width_ * rows_of_sum_ * width_ + p % width_;
  std::vector<int64_t> along(neurons);
  for (int64_t i = 0; i < neurons; ++i) along[i] = i;
  parallel(tiles, [&](int64_t tile) {
    const int64_t n = tile * kernel_.rows;
    T* to = sum_.get() + (panel * rows_of_sum_ + n) * width_;
    const T *residuals[8], *weights[8];
    for (int r = 0; r < kernel_.rows; ++r) {
      residuals[r] = rt_.get() + (n + r) * width_;
      weights[r] = panels_[panel] + std::min(n + r, inputs_ - 1) * width_;
    }
    kernel_.tile(residuals, steps_.get(), count, response(panel), width_, vectors, to, width_, false);
    kernel_.tile(weights, along.data(), neurons, c, width_, vectors, to, width_, true);
  });
}

// R -= Y_b W_b.
template <class T>
void Sanger<T>::residual_less(int64_t panel, int64_t count) {
  const int64_t neurons = panels_.valid(panel), tiles = rows_of_sum_ / kernel_.rows,
                across = (count + width_ - 1) / width_;
  std::vector<int64_t> along(neurons);
  for (int64_t i = 0; i < neurons; ++i) along[i] = i;
  for (int64_t q = 0; q < across; ++q) {
    const int64_t patches = std::min<int64_t>(width_, count - q * width_);
    T* to = yt_.get() + q * width_ * width_;
    for (int64_t j = 0; j < patches; j += kernel_.lanes)
      kernel_.transpose(response(panel) + (q * width_ + j) * width_, width_,
                        std::min<int64_t>(kernel_.lanes, patches - j), neurons, to + j, width_);
    for (int64_t i = 0; i < neurons; ++i)
      for (int64_t j = 0; j < round_up(patches, kernel_.lanes); ++j) to[i * width_ + j] = -to[i * width_ + j];
  }
  parallel(tiles * across, [&](int64_t item) {
    const int64_t q = item / tiles, n = item % tiles * kernel_.rows;
    const int64_t patches = std::min<int64_t>(width_, count - q * width_);
    const T* rows[8];
    for (int r = 0; r < kernel_.rows; ++r) rows[r] = panels_[panel] + std::min(n + r, inputs_ - 1) * width_;
    kernel_.tile(rows, along.data(), neurons, yt_.get() + q * width_ * width_, width_,
                 int((patches + kernel_.lanes - 1) / kernel_.lanes), rt_.get() + (q * rows_of_sum_ + n) * width_,
                 width_, true);
  });
}

template <class T>
void Sanger<T>::residual(int64_t count) {
  residual_images(count);
  for (int64_t panel = 0; panel < panels_.count(); ++panel) {
    residual_sum(panel, count);
    if (panel + 1 < panels_.count()) residual_less(panel, count);
  }
}

template void Sanger<float>::residual(int64_t);
template void Sanger<double>::residual(int64_t);

}  // namespace hebbkern
