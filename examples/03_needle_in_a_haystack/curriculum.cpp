#include "curriculum.hpp"

#include <algorithm>
#include <cmath>

#include "batch.hpp"
#include "examples/model/adamw.hpp"
#include "examples/model/all_reduce.hpp"

namespace needle {
namespace {

std::vector<Haystack> haystacks_of(const Lesson& lesson, const Options& options, std::int64_t step) {
  const std::int64_t count = options.tokens / lesson.length;
  std::vector<Haystack> haystacks;
  for (std::int64_t i = 0; i < count; ++i)
    haystacks.push_back(training_haystack(lesson.length, lesson.needles, lesson.nearest, options.seed,
                                          static_cast<std::uint64_t>(step * count + i)));
  return haystacks;
}

// The model, and the same model with the summaries alone; both use the values of `whole`.
class Pair {
 public:
  Pair(const Options& options, const Batch& shape, model::Operations& operations, cpnsa::Communicator& communicator,
       const Values& values)
      : operations_(operations),
        communicator_(communicator),
        all_reduce_(operations, communicator),
        whole_(options, attention_of(options, operations.narrow(), Reach::all), shape.cu_seqlens, operations,
               communicator, values),
        summaries_(options, attention_of(options, operations.narrow(), Reach::summaries), shape.cu_seqlens, operations,
                   communicator, values) {}

  // In both cases the gradients, summed over the ranks, are in whole().parameters().
  double loss_and_gradients(const Batch& batch, Reach reach) {
    model::Parameters& parameters = whole_.parameters();
    Instance& instance = reach == Reach::all ? whole_ : summaries_;
    if (reach == Reach::summaries) {
      copy(summaries_.parameters().values(), parameters.values());
      summaries_.parameters().round();
    }
    const double share = 1.0 / static_cast<double>(std::max<std::int64_t>(1, batch.questions()));
    double loss[] = {share * instance.retriever().forward_backward(batch.rows(instance.positions()),
                                                                   batch.targets_at(instance.positions()), share)};
    if (reach == Reach::summaries) copy(parameters.gradients(), summaries_.parameters().gradients());
    all_reduce_.sum(parameters.gradients());
    communicator_.wait(operations_.device(), operations_.stream());
    all_reduce_.sum_on_host(loss);
    return loss[0];
  }

  Instance& whole() { return whole_; }

 private:
  void copy(const model::TensorView& destination, const model::TensorView& source) {
    operations_.device().copy(destination.data, source.data, source.bytes(), operations_.stream());
  }

  model::Operations& operations_;
  cpnsa::Communicator& communicator_;
  model::AllReduce all_reduce_;
  Instance whole_, summaries_;
};

Values learn_lesson(const Lesson& lesson, const Options& options, model::Operations& operations,
                    cpnsa::Communicator& communicator, const Values& values, const StepObserver& observe) {
  Pair pair(options, Batch(haystacks_of(lesson, options, 0)), operations, communicator, values);
  model::AdamW optimizer(pair.whole().parameters(), options.learning_rate, lesson.steps);
  for (std::int64_t step = 1; step <= lesson.steps; ++step) {
    const Reach reach = lesson.alternates && step % 2 == 0 ? Reach::summaries : Reach::all;
    const double loss = pair.loss_and_gradients(Batch(haystacks_of(lesson, options, step)), reach);
    optimizer.step();
    observe(lesson, step, reach, loss);
  }
  return pair.whole().values();
}

}  // namespace

std::vector<Lesson> curriculum(const Options& options) {
  // With Reach::summaries a question farther than this from its needle is answered by the summaries alone.
  constexpr std::int64_t far = 24;
  std::vector<Lesson> lessons{
      {"which value goes with a key", 32, 4, 0, false, 1},
      {"to find a key by the summaries", 64, 4, far, true, 1},
      {"to find it among many blocks", 512, 16, far, true, 2},
      {"the same, farther", 2048, 64, far, true, 2},
  };
  for (Lesson& lesson : lessons) {  // the numbers of steps above are sixths of the total
    lesson.steps = std::max<std::int64_t>(1, lesson.steps * options.steps / 6);
    lesson.length = std::min(lesson.length, options.tokens);
    lesson.needles = std::min(lesson.needles, lesson.length / 8);
  }
  return lessons;
}

Values learn(const Options& options, model::Operations& operations, cpnsa::Communicator& communicator,
             const StepObserver& observe) {
  Values values;
  for (const Lesson& lesson : curriculum(options))
    values = learn_lesson(lesson, options, operations, communicator, values, observe);
  return values;
}

}  // namespace needle
