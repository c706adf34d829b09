# shellcheck shell=bash disable=SC2034
# Sourced by the other scripts: what they need of the system, and how to get what is missing of it.

packages=(g++ cmake ninja-build libopenmpi-dev openmpi-bin libgtest-dev libgmock-dev nlohmann-json3-dev libcli11-dev
          libfmt-dev libeigen3-dev pkg-config)

# For the tests of CUDA kernels without a GPU.
emulation_packages=(libboost-context-dev)

# For the tests of the Python package; Debian's PyTorch is 1.13, the oldest that it works with.
python_packages=(python3-dev python3-venv python3-numpy python3-pytest python3-torch)

fail() {
  echo "${0##*/}: error: $*" >&2
  exit 1
}

# Installs those of the named Debian packages that are missing.
install_missing() {
  if ! command -v apt-get > /dev/null; then
    echo "This is no Debian or Ubuntu; going on without installing. Needed are what Debian calls: $*"
    return
  fi
  local missing=() package as_root=()
  for package in "$@"; do
    dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2> /dev/null | grep -qx installed ||
      missing+=("$package")
  done
  if [ ${#missing[@]} -eq 0 ]; then return; fi
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo > /dev/null ||
      fail "these packages are missing, and there is neither root nor sudo to install them: ${missing[*]}"
    as_root=(sudo)
  fi
  echo "Installing ${missing[*]}"
  "${as_root[@]}" apt-get update -qq || fail "apt-get update failed; needed are: ${missing[*]}"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" \
    > /dev/null || fail "apt-get could not install: ${missing[*]}"
}

# CMake 3.25 or newer: the system's, or else one from PyPI in a virtual environment under build/.
provide_cmake() {
  local needed=3.25 found
  found=$(cmake --version 2> /dev/null | sed -n 's/^cmake version \([0-9.]*\).*/\1/p')
  if printf '%s\n%s\n' "$needed" "${found:-0}" | sort --check=quiet --version-sort; then return; fi
  echo "Found CMake ${found:-nowhere}, expected $needed or newer: getting one from PyPI into build/cmake"
  install_missing python3-venv
  { python3 -m venv build/cmake && build/cmake/bin/pip --quiet install "cmake>=$needed,<4"; } ||
    fail "CMake $needed or newer is needed, this system has ${found:-none}, and PyPI could not provide it"
  PATH="$PWD/build/cmake/bin:$PATH"
}

# A virtual environment over the system's Python with what builds the Python package; sets `python`. Fails where PyPI
# provides no nanobind.
provide_python() {
  local environment=$PWD/build/python-environment
  install_missing "${python_packages[@]}"
  python=$environment/bin/python
  if "$python" -c 'import nanobind, scikit_build_core' 2> /dev/null; then return; fi
  /usr/bin/python3 -m venv --system-site-packages "$environment" &&
    "$python" -m pip --quiet install 'nanobind>=2.5' 'scikit-build-core>=0.10'
}

# A virtual environment over nothing but PyPI with the newest packages that the Python tests run with; sets
# `modern_python`. Fails where PyPI does not provide them.
provide_modern_python() {
  local environment=$PWD/build/pypi-python requirements=tests/python/requirements-modern.txt
  modern_python=$environment/bin/python
  if cmp --silent "$requirements" "$environment/requirements.txt"; then return; fi
  /usr/bin/python3 -m venv --clear "$environment" && "$modern_python" -m pip --quiet install -r "$requirements" &&
    cp "$requirements" "$environment/requirements.txt"
}

# Where nvcc is, if this machine has one; puts it on the path.
find_nvcc() {
  if ! command -v nvcc > /dev/null && [ -x /usr/local/cuda/bin/nvcc ]; then PATH="/usr/local/cuda/bin:$PATH"; fi
  command -v nvcc
}

has_gpu() {
  nvidia-smi --list-gpus 2> /dev/null | grep -q '^GPU'
}

cores=$(env -u OMP_NUM_THREADS nproc)  # which would take the one thread a rank, below, for them

# Open MPI as root and with more ranks than cores, which containers and small machines need; without the kernel's
# copies between processes, which containers forbid; and one thread a rank.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none OMP_NUM_THREADS=1
