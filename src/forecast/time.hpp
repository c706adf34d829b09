#pragma once

#include "cpnsa/forecast.hpp"
#include "src/forecast/work.hpp"
#include "src/planning/plan.hpp"

namespace cpnsa::forecasts {

/// Seconds of a rank's work, and its passes with the messages of `schedule`. `rank` has its bytes already.
class TimeModel {
 public:
  TimeModel(const ComputeModel& compute, const NetworkModel& network);

  void add_times(const AttentionOptions& options, const planning::Plan& plan, const planning::BlockSchedule& schedule,
                 const Work& work, RankForecast& rank) const;

 private:
  ByWork seconds(const ByWork& work, bool backward) const;
  double messages(double bytes, int rank, const std::vector<double>& bytes_of_peers) const;

  const ComputeModel& compute_;
  const NetworkModel& network_;
  std::vector<Work> measured_;  ///< of the compute model's lengths
};

}  // namespace cpnsa::forecasts
