#include "tools/info.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "backends/backends.hpp"
#include "cpnsa/cpu/device.hpp"
#include "cpnsa/error.hpp"
#include "tools/json_output.hpp"
#include "tools/provenance.hpp"

namespace cpnsa::tool {
namespace {

using nlohmann::ordered_json;

/// The answer for one device: the kernels of each op, or why the layer does not run there.
struct Service {
  std::string device;
  std::string refusal;
  std::vector<OpKernel> kernels;
};

bool has_config(const Config& config) {
  return config.num_q_heads != 0 || config.num_kv_heads != 0 || config.head_dim_qk != 0 || config.head_dim_v != 0;
}

Service on_cpu(const Config& config, DType dtype) {
  Service service{"cpu", {}, {}};
  try {
    cpu::make_device()->check_supported(config, dtype);
  } catch (const UnsupportedError& error) {
    service.refusal = error.what();
  }
  return service;
}

Service on_gpu(const Config& config, DType dtype, int capability) {
  Service service{fmt::format("cuda {}.{}", capability / 10, capability % 10), {}, {}};
  try {
    service.kernels = backends::cuda_kernels_of(config, dtype, capability);
  } catch (const UnsupportedError& error) {
    service.refusal = error.what();
  }
  return service;
}

std::vector<Service> services_of(const Config& config, DType dtype, const std::vector<GpuInfo>& gpus) {
  std::vector<Service> services{on_cpu(config, dtype)};
  std::set<int> capabilities;
  for (const GpuInfo& gpu : gpus) capabilities.insert(gpu.capability);
  if (capabilities.empty()) capabilities = {80, 90};
  if (!backends::has_cuda) capabilities.clear();
  for (const int capability : capabilities) services.push_back(on_gpu(config, dtype, capability));
  return services;
}

std::string or_none(const std::string& text) {
  return text.empty() ? "none" : text;
}

std::string text_of(const std::vector<GpuInfo>& gpus) {
  const BuildInfo& build = build_info();
  std::string text =
      fmt::format("cpnsa {}, commit {}\nbuilt by {}, {}, CPU device for {}\nbackends: {}\n", build.version,
                  build.commit, build.compiler, build.build_type, build.cpu_arch, fmt::join(built_backends(), ", "));
  for (const LibraryVersion& library : library_versions())
    text += fmt::format("{}: compiled {}, found {}\n", library.name, or_none(library.compiled), or_none(library.found));
  text += fmt::format("GPUs: {}\n", !backends::has_cuda ? "not looked for, this build has no CUDA (CPNSA_CUDA is OFF)"
                                    : gpus.empty()      ? "none"
                                                        : std::to_string(gpus.size()));
  for (const GpuInfo& gpu : gpus)
    text += fmt::format(
        "  {}: {}, compute capability {}.{}, {} multiprocessors up to {} MHz, {:.1f} of {:.1f} GiB free, ECC {}, {} at "
        "{}\n",
        gpu.index, gpu.name, gpu.capability / 10, gpu.capability % 10, gpu.multiprocessors, gpu.clock_mhz,
        static_cast<double>(gpu.free_bytes) / (1 << 30), static_cast<double>(gpu.memory_bytes) / (1 << 30),
        gpu.error_correction ? "on" : "off", gpu.uuid, gpu.bus);
  return text;
}

std::string text_of(const Service& service) {
  if (!service.refusal.empty()) return fmt::format("  {}: not served: {}\n", service.device, service.refusal);
  if (service.kernels.empty()) return fmt::format("  {}: served, by the kernels of kernels/cpu\n", service.device);
  std::string text = fmt::format("  {}: served\n", service.device);
  for (const OpKernel& kernel : service.kernels)
    text += fmt::format("    {:<30} {:<8} {}\n", kernel.op, name_of(kernel.family), kernel.reason);
  return text;
}

ordered_json json_of(const GpuInfo& gpu) {
  return {{"index", gpu.index},
          {"name", gpu.name},
          {"capability", gpu.capability},
          {"uuid", gpu.uuid},
          {"bus", gpu.bus},
          {"multiprocessors", gpu.multiprocessors},
          {"memory_bytes", gpu.memory_bytes},
          {"free_bytes", gpu.free_bytes},
          {"clock_mhz", gpu.clock_mhz},
          {"error_correction", gpu.error_correction}};
}

ordered_json json_of(const Service& service) {
  ordered_json json{{"device", service.device}, {"served", service.refusal.empty()}};
  if (!service.refusal.empty()) json["reason"] = service.refusal;
  json["ops"] = ordered_json::object();
  for (const OpKernel& kernel : service.kernels)
    json["ops"][std::string(kernel.op)] = {{"kernels", name_of(kernel.family)}, {"reason", kernel.reason}};
  return json;
}

}  // namespace

void info(const InfoOptions& options) {
  const std::vector<GpuInfo> gpus = backends::cuda_gpus();
  std::string text = text_of(gpus);
  ordered_json json = build_json();
  json["host"] = host_name();
  json["gpus"] = ordered_json::array();
  for (const GpuInfo& gpu : gpus) json["gpus"].push_back(json_of(gpu));

  if (has_config(options.config)) {
    Config config = options.config;
    config.compress_hidden_k = config.compress_hidden_v = options.hidden;
    config = config.with_defaults();
    config.validate();
    text += fmt::format("{} layer, {}\n", name_of(options.dtype), config.describe());
    json["dtype"] = name_of(options.dtype);
    json["config"] = config.describe();
    json["kernels"] = ordered_json::array();
    for (const Service& service : services_of(config, options.dtype, gpus)) {
      text += text_of(service);
      json["kernels"].push_back(json_of(service));
    }
    if (!backends::has_cuda) text += "  cuda: unknown, this build has no CUDA (CPNSA_CUDA is OFF)\n";
  }
  print_report(options.json, text, json.dump(2) + "\n");
}

}  // namespace cpnsa::tool
