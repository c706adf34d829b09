/*
 * cpnsa in C11: Native Sparse Attention (arXiv 2502.11089), forward and backward, over a sequence sharded across ranks.
 * docs/c.md has a whole program, docs/algorithm.md the formulas.
 *
 * Every function returns a cpnsa_status; cpnsa_last_error() says what was found, what was expected, and where. What a
 * function makes is NULL where it fails.
 *
 * Handles are names, not addresses: one that was destroyed, or is of another kind, gives CPNSA_ERROR_HANDLE. What a
 * layer was made with lives as long as the layer does, so handles may be destroyed in any order. Destroying NULL does
 * nothing. A handle may be used by one thread at a time; a second one gets CPNSA_ERROR_ARGUMENT.
 *
 * Structs with a struct_size are set up by their _INIT macro, so that a program built with an older header runs with a
 * newer library: what it does not know of keeps its default.
 */
#ifndef CPNSA_H
#define CPNSA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CPNSA_API __attribute__((visibility("default")))

#define CPNSA_VERSION_MAJOR 0
#define CPNSA_VERSION_MINOR 1
#define CPNSA_VERSION_PATCH 0

/* --- status ------------------------------------------------------------------------------------------------------- */

typedef enum cpnsa_status {
  CPNSA_SUCCESS = 0,
  CPNSA_ERROR_CONFIG = 1,        /* a hyperparameter that breaks the algorithm's rules */
  CPNSA_ERROR_ARGUMENT = 2,      /* a tensor, pointer, shape, partition or struct that does not fit */
  CPNSA_ERROR_UNSUPPORTED = 3,   /* valid, but not served by this device or build */
  CPNSA_ERROR_MISMATCH = 4,      /* ranks with different configurations, sequences or orders of calls */
  CPNSA_ERROR_COMMUNICATION = 5, /* a transport failed, or another rank gave up */
  CPNSA_ERROR_DEADLINE = 6,      /* a wait for another rank outlasted the deadline */
  CPNSA_ERROR_DEVICE = 7,        /* the device reported a failure */
  CPNSA_ERROR_HANDLE = 8,        /* no handle of a living object of that kind */
  CPNSA_ERROR_MEMORY = 9,        /* no host memory left */
  CPNSA_ERROR_INTERNAL = 10      /* a mistake of the library's */
} cpnsa_status;

/* "CPNSA_ERROR_CONFIG"; "?" for a number that is no status. */
CPNSA_API const char* cpnsa_status_name(int status);

/* Why the last call of this thread that failed did so; "" if none has. Valid until the thread's next call. */
CPNSA_API const char* cpnsa_last_error(void);

/* Version of the library that runs; any pointer may be NULL. */
CPNSA_API cpnsa_status cpnsa_version(int* major, int* minor, int* patch);

/* 1 if the library was built with it, else 0. */
CPNSA_API int cpnsa_has_cuda(void);
CPNSA_API int cpnsa_has_nccl(void);

/* Facts about the library and this machine. Texts are valid until the process ends; "" where there is nothing. */
typedef struct cpnsa_info {
  size_t struct_size;
  const char* version;       /* "0.1.0" */
  const char* commit;        /* of the sources when they were configured; "unknown" outside of a repository */
  const char* compiler;      /* "GNU 12.2.0" */
  const char* cpu_arch;      /* the CPU that the CPU device was compiled for, as -march names it */
  const char* cuda_compiled; /* versions of the CUDA runtime, the driver and NCCL */
  const char* cuda_found;
  const char* cuda_driver;
  const char* nccl_compiled;
  const char* nccl_found;
  int32_t gpus; /* that this process sees */
  int32_t reserved;
} cpnsa_info;
#define CPNSA_INFO_INIT \
  { sizeof(cpnsa_info), "", "", "", "", "", "", "", "", "", 0, 0 }

CPNSA_API cpnsa_status cpnsa_get_info(cpnsa_info* info);

/* --- messages ----------------------------------------------------------------------------------------------------- */

typedef enum cpnsa_log_level {
  CPNSA_LOG_DEBUG = 1,
  CPNSA_LOG_INFO = 2,
  CPNSA_LOG_WARNING = 3,
  CPNSA_LOG_ERROR = 4,
  CPNSA_LOG_OFF = 5 /* of cpnsa_set_log_level() alone */
} cpnsa_log_level;

/* Receives a message of one line. Several threads may call it at once, in the middle of a collective call: it
 * must not call the library. `message` is valid during the call. */
typedef void (*cpnsa_log_hook)(void* user, int32_t level, const char* message);

/* Replaces the receiver of messages. The first one, and NULL, write "cpnsa: warning: ..." to standard error. */
CPNSA_API cpnsa_status cpnsa_set_log_hook(cpnsa_log_hook hook, void* user);

/* Messages below this cpnsa_log_level are dropped. Unless set: the environment variable CPNSA_LOG, one of debug, info,
 * warning, error and off; otherwise warning. */
CPNSA_API cpnsa_status cpnsa_set_log_level(int32_t level);

/* --- device ------------------------------------------------------------------------------------------------------- */

typedef struct cpnsa_device_object* cpnsa_device;

/* The calling threads' CPU: f64, f32, bf16, f16. Work is done when a call returns; streams are ignored. */
CPNSA_API cpnsa_status cpnsa_device_create_cpu(cpnsa_device* device);

/* An NVIDIA GPU as the CUDA runtime numbers them, -1 for the calling thread's current one: bf16, f16. Tensors are its
 * memory, streams are cudaStream_t, NULL the legacy default stream. UNSUPPORTED in a library built without CUDA. */
CPNSA_API cpnsa_status cpnsa_device_create_cuda(int index, cpnsa_device* device);
CPNSA_API cpnsa_status cpnsa_device_destroy(cpnsa_device device);

/* --- communicator ------------------------------------------------------------------------------------------------- */

typedef struct cpnsa_communicator_object* cpnsa_communicator;

/* `ranks` ranks that are threads of this process; communicators[ranks], index = rank, one a thread. */
CPNSA_API cpnsa_status cpnsa_communicator_create_threads(int ranks, cpnsa_communicator* communicators);

/* Over the caller's ncclComm_t, which must outlive it and which it neither destroys nor aborts. */
CPNSA_API cpnsa_status cpnsa_communicator_borrow_nccl(void* nccl_comm, cpnsa_communicator* communicator);

/* An NCCL communicator of the library's own, for the GPU that is current on the calling thread; collective. `id` is of
 * one cpnsa_nccl_unique_id() (an ncclUniqueId), brought to every rank by the caller. */
#define CPNSA_NCCL_UNIQUE_ID_BYTES 128
CPNSA_API cpnsa_status cpnsa_nccl_unique_id(void* id);
CPNSA_API cpnsa_status cpnsa_communicator_create_nccl(const void* id, int rank, int ranks,
                                                      cpnsa_communicator* communicator);

typedef struct cpnsa_send {
  int peer;
  const void* data;
  size_t bytes;
} cpnsa_send;

typedef struct cpnsa_receive {
  int peer;
  void* data;
  size_t bytes;
} cpnsa_receive;

/* How the caller moves bytes between ranks, e.g. by a framework's process group. All memory is the host's: a GPU's is
 * brought there and back by the library. A callback returns 0 when everything has arrived, CPNSA_ERROR_MISMATCH or
 * CPNSA_ERROR_DEADLINE where that is what went wrong, any other number for any other failure. After one failure the
 * communicator calls none of them again but abort. `user` must live as long as the communicator and its layers. */
typedef struct cpnsa_callbacks {
  size_t struct_size;
  void* user; /* given to every callback */

  /* Sends and receives these messages: at most one to and one from each other rank, peers ascending, none empty. The
   * lists may be empty, on one rank and not on another. */
  int (*exchange)(void* user, const cpnsa_send* sends, size_t send_count, const cpnsa_receive* receives,
                  size_t receive_count);

  /* `all` holds a part of `bytes` bytes for each rank, in rank order, the own part in its place: fills in the others'.
   * `bytes` is at least 1. */
  int (*all_gather)(void* user, void* all, size_t bytes);

  /* The rest may be NULL. */
  int (*barrier)(void* user);
  void (*abort)(void* user, const char* reason); /* this rank gives up: release the others, never wait */
  void (*set_deadline)(void* user, int64_t milliseconds);
  const char* (*error_text)(void* user); /* of the callback that just failed, for cpnsa_last_error() */
} cpnsa_callbacks;
#define CPNSA_CALLBACKS_INIT \
  { sizeof(cpnsa_callbacks), NULL, NULL, NULL, NULL, NULL, NULL, NULL }

CPNSA_API cpnsa_status cpnsa_communicator_create_callbacks(int rank, int ranks, const cpnsa_callbacks* callbacks,
                                                           cpnsa_communicator* communicator);

CPNSA_API cpnsa_status cpnsa_communicator_rank(cpnsa_communicator communicator, int* rank);
CPNSA_API cpnsa_status cpnsa_communicator_ranks(cpnsa_communicator communicator, int* ranks);
/* The deadline of communicators that are made from now on, in milliseconds, at least 1; also of making one over NCCL.
 * Unless set: the environment variable CPNSA_DEADLINE, in whole seconds; otherwise 300 000. */
CPNSA_API cpnsa_status cpnsa_set_default_deadline(int64_t milliseconds);
/* Longest time that one wait for other ranks may take, at least 1. */
CPNSA_API cpnsa_status cpnsa_communicator_set_deadline(cpnsa_communicator communicator, int64_t milliseconds);
CPNSA_API cpnsa_status cpnsa_communicator_barrier(cpnsa_communicator communicator);
/* Ends every rank's present and later calls with the reason, as far as the transport reaches them. Another thread than
 * the one that is in a call may do so where the ranks are threads or callbacks. */
CPNSA_API cpnsa_status cpnsa_communicator_abort(cpnsa_communicator communicator, const char* reason);
CPNSA_API cpnsa_status cpnsa_communicator_destroy(cpnsa_communicator communicator);

/* --- partition ---------------------------------------------------------------------------------------------------- */

/* The assignment of the tokens of a packed sequence to ranks. */
typedef struct cpnsa_partition_object* cpnsa_partition;

typedef enum cpnsa_partition_kind {
  CPNSA_PARTITION_CONTIGUOUS = 1,
  CPNSA_PARTITION_ZIGZAG = 2,             /* the sequence in 2 P chunks; rank r owns chunks r and 2 P - 1 - r */
  CPNSA_PARTITION_ZIGZAG_PER_DOCUMENT = 3 /* every document in 2 P chunks of its own, as Megatron-LM packs them */
} cpnsa_partition_kind;

/* Tokens [begin, end) of the packed sequence. */
typedef struct cpnsa_range {
  int64_t begin;
  int64_t end;
} cpnsa_range;

/* cu_seqlens[bounds] bounds the documents: from 0 to the number of tokens, not descending. Ranges are cut at
 * multiples of select_block in a document, and at its end. */
CPNSA_API cpnsa_status cpnsa_partition_create(int32_t kind, const int64_t* cu_seqlens, size_t bounds,
                                              int64_t select_block, int ranks, cpnsa_partition* partition);

/* The caller's own: the first range_counts[0] of `ranges` are rank 0's, and so on for each of the ranks. */
CPNSA_API cpnsa_status cpnsa_partition_create_custom(const int64_t* cu_seqlens, size_t bounds, int64_t select_block,
                                                     int ranks, const cpnsa_range* ranges, const size_t* range_counts,
                                                     cpnsa_partition* partition);

/* The number of tokens that a rank owns. */
CPNSA_API cpnsa_status cpnsa_partition_tokens(cpnsa_partition partition, int rank, int64_t* tokens);

/* The token of the packed sequence that each local row of a rank is; tokens[capacity], one for each token at least. */
CPNSA_API cpnsa_status cpnsa_partition_global_rows(cpnsa_partition partition, int rank, int64_t* tokens,
                                                   size_t capacity);

/* A rank's ranges in the order of its rows: *count of them, written to ranges[capacity] if that is enough. With ranges
 * NULL only counts. */
CPNSA_API cpnsa_status cpnsa_partition_ranges(cpnsa_partition partition, int rank, cpnsa_range* ranges, size_t capacity,
                                              size_t* count);

/* Copies a rank's rows out of a packed tensor in host memory, or back into it; rows are row_bytes long. */
CPNSA_API cpnsa_status cpnsa_partition_scatter(cpnsa_partition partition, int rank, const void* packed, void* local,
                                               size_t row_bytes);
CPNSA_API cpnsa_status cpnsa_partition_gather(cpnsa_partition partition, int rank, const void* local, void* packed,
                                              size_t row_bytes);
CPNSA_API cpnsa_status cpnsa_partition_destroy(cpnsa_partition partition);

/* --- attention ---------------------------------------------------------------------------------------------------- */

typedef enum cpnsa_dtype { CPNSA_F64 = 1, CPNSA_F32 = 2, CPNSA_BF16 = 3, CPNSA_F16 = 4 } cpnsa_dtype;

typedef enum cpnsa_compressor {
  CPNSA_COMPRESSOR_MEAN = 1,
  CPNSA_COMPRESSOR_LINEAR = 2,
  CPNSA_COMPRESSOR_MLP = 3
} cpnsa_compressor;

typedef enum cpnsa_activation {
  CPNSA_ACTIVATION_SILU = 1,
  CPNSA_ACTIVATION_RELU = 2,
  CPNSA_ACTIVATION_GELU = 3 /* the tanh form */
} cpnsa_activation;

typedef enum cpnsa_gate {
  CPNSA_GATE_LOGITS = 1, /* the library applies the sigmoid */
  CPNSA_GATE_VALUES = 2  /* used as they are */
} cpnsa_gate;

/* The branches of a layer; one that is off costs nothing and adds 0. */
typedef enum cpnsa_branch_set {
  CPNSA_BRANCH_SET_ALL = 1,
  CPNSA_BRANCH_SET_CMP_SLC = 2,
  CPNSA_BRANCH_SET_CMP_WIN = 3,
  CPNSA_BRANCH_SET_SLC_WIN = 4,
  CPNSA_BRANCH_SET_CMP = 5,
  CPNSA_BRANCH_SET_SLC = 6,
  CPNSA_BRANCH_SET_WIN = 7
} cpnsa_branch_set;

/* How blocks of other ranks that queries selected are brought in. */
typedef enum cpnsa_exchange {
  CPNSA_EXCHANGE_AUTOMATIC = 1, /* decided a call at a time, all ranks alike */
  CPNSA_EXCHANGE_FETCH = 2,     /* what was selected and no more; the host reads the demand once a forward */
  CPNSA_EXCHANGE_GATHER = 3,    /* everything, one KV head after another */
  CPNSA_EXCHANGE_PULL = 4       /* what was selected, read out of the owners' memory; over threads alone */
} cpnsa_exchange;

/* Hyperparameters; enums are given as their values. */
typedef struct cpnsa_config {
  size_t struct_size;
  int64_t num_q_heads;       /* H */
  int64_t num_kv_heads;      /* G, divides H */
  int64_t head_dim_qk;       /* d_qk */
  int64_t head_dim_v;        /* d_v */
  int64_t compress_block;    /* l, tokens a summary covers */
  int64_t compress_stride;   /* s, divides l and m */
  int64_t select_block;      /* m */
  int64_t select_count;      /* n, blocks a query selects, forced ones included */
  int64_t init_blocks;       /* forced blocks at the document's start */
  int64_t local_blocks;      /* forced blocks ending at the query's own */
  int64_t window;            /* w, the query's own token included */
  double softmax_scale;      /* 0: 1 / sqrt(d_qk) */
  int32_t compressor;        /* cpnsa_compressor */
  int32_t activation;        /* cpnsa_activation, of the mlp compressor */
  int32_t gate;              /* cpnsa_gate */
  int32_t branches;          /* cpnsa_branch_set */
  int64_t compress_hidden_k; /* width of the mlp compressors' hidden layers; 0: twice the head dimension */
  int64_t compress_hidden_v;
} cpnsa_config;
/* The paper's values. The caller sets the counts and the dimensions of the heads. */
#define CPNSA_CONFIG_INIT                                                                                          \
  {                                                                                                                \
    sizeof(cpnsa_config), 0, 0, 0, 0, 32, 16, 64, 16, 1, 2, 512, 0.0, CPNSA_COMPRESSOR_MLP, CPNSA_ACTIVATION_SILU, \
        CPNSA_GATE_LOGITS, CPNSA_BRANCH_SET_ALL, 0, 0                                                              \
  }

/* The configuration of this name: "paper-27b", "wide-128", "small"; config->struct_size says how much may be written.
 */
CPNSA_API cpnsa_status cpnsa_config_preset(const char* name, cpnsa_config* config);

typedef struct cpnsa_options {
  size_t struct_size;
  int32_t dtype;                    /* cpnsa_dtype of every input and of out */
  int32_t exchange;                 /* cpnsa_exchange */
  int32_t gradient_dtype;           /* of dq, dk, dv, dgate; 0: dtype. Else f64 for f64 layers, f32 for all others */
  int32_t backward;                 /* whether cpnsa_backward() will be called */
  int32_t refetch_blocks;           /* whether it has other ranks' blocks sent once more; if not, `saved` keeps them */
  int32_t recompute_branches;       /* whether it computes the branches' outputs again; if not, `saved` keeps them */
  int32_t sum_parameter_gradients;  /* whether it sums the compressors' gradients over the ranks */
  int32_t timing;                   /* whether cpnsa_statistics.seconds is measured */
  int32_t reuse_saved;              /* whether it may write over `saved`: less memory, and once a forward */
  int32_t parameter_gradient_dtype; /* of the compressors' gradients: dtype; 0: f64 for f64 layers, f32 for others */
  int32_t compare_parameters;       /* whether the first forward makes sure that all ranks hold the same parameters */
  int32_t compressed_query;         /* whether inputs have q_cmp */
  int32_t sinks;                    /* whether inputs may have sink_slc and sink_win */
  int32_t given_selection;          /* whether inputs have `selected`, in place of importance and top-n */
} cpnsa_options;
#define CPNSA_OPTIONS_INIT \
  { sizeof(cpnsa_options), CPNSA_F32, CPNSA_EXCHANGE_AUTOMATIC, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0 }

/* A dense C-order tensor in the device's memory; one of rank 0, as {0} is, stands for "not given". */
typedef struct cpnsa_tensor {
  void* data;
  int32_t dtype; /* cpnsa_dtype */
  int32_t rank;
  int64_t shape[4];
} cpnsa_tensor;

/* Keys or values of the three branches; the same tensor may be given for all. */
typedef struct cpnsa_branches {
  cpnsa_tensor cmp;
  cpnsa_tensor slc;
  cpnsa_tensor win;
} cpnsa_branches;

/* Parameters of one compressor, of the layer's type, or their gradients. */
typedef struct cpnsa_compressor_tensors {
  cpnsa_tensor pos;    /* [G, l, d], optional */
  cpnsa_tensor weight; /* [G, l d, d], linear */
  cpnsa_tensor w1;     /* [G, l d, hidden], mlp */
  cpnsa_tensor b1;     /* [G, hidden], mlp */
  cpnsa_tensor w2;     /* [G, hidden, d], mlp */
  cpnsa_tensor b2;     /* [G, d], mlp */
} cpnsa_compressor_tensors;

/* This rank's rows, in the order of its partition's ranges; or gradients of them. */
typedef struct cpnsa_tensors {
  size_t struct_size;
  cpnsa_tensor q;    /* [rows, H, d_qk] */
  cpnsa_branches k;  /* [rows, G, d_qk] */
  cpnsa_branches v;  /* [rows, G, d_v] */
  cpnsa_tensor gate; /* [rows, H, 3]: compressed, selected, window */
  cpnsa_compressor_tensors compress_k;
  cpnsa_compressor_tensors compress_v;
  /* The caller's own number of the layer, where one cpnsa_attention serves several; read from inputs alone. Ranks that
   * call the layers in different orders get CPNSA_ERROR_MISMATCH. A backward has that of its forward. */
  int64_t layer;
  /* Optional; what follows them is read from inputs alone. */
  cpnsa_tensor q_cmp;    /* [rows, H, d_qk], the query of the compressed branch, if options.compressed_query */
  cpnsa_tensor sink_slc; /* [H], a logit of the selected branch's softmax that has no value, if options.sinks */
  cpnsa_tensor sink_win; /* [H], of the window's */
  /* Angles that summaries of keys are rotated by, [summaries of a document, pairs], f64 for f64 layers, f32 for others:
   * pair p is the channels 2p and 2p + 1 if `interleaved`, else p and p + pairs. */
  cpnsa_tensor rotation_cos;
  cpnsa_tensor rotation_sin;
  int32_t rotation_interleaved;
  int32_t reserved; /* 0 */
  /* int32 [rows, G, n] in device memory, if options.given_selection: ascending blocks of each row's document, none
   * beyond the row's own, at least one, padded with -1. The host reads it in each forward. */
  const int32_t* selected;
} cpnsa_tensors;
#define CPNSA_TENSOR_NONE \
  {                       \
    NULL, 0, 0, {         \
      0, 0, 0, 0          \
    }                     \
  }
#define CPNSA_BRANCHES_NONE \
  { CPNSA_TENSOR_NONE, CPNSA_TENSOR_NONE, CPNSA_TENSOR_NONE }
#define CPNSA_COMPRESSOR_NONE \
  { CPNSA_TENSOR_NONE, CPNSA_TENSOR_NONE, CPNSA_TENSOR_NONE, CPNSA_TENSOR_NONE, CPNSA_TENSOR_NONE, CPNSA_TENSOR_NONE }
#define CPNSA_TENSORS_INIT                                                                                        \
  {                                                                                                               \
    sizeof(cpnsa_tensors), CPNSA_TENSOR_NONE, CPNSA_BRANCHES_NONE, CPNSA_BRANCHES_NONE, CPNSA_TENSOR_NONE,        \
        CPNSA_COMPRESSOR_NONE, CPNSA_COMPRESSOR_NONE, 0, CPNSA_TENSOR_NONE, CPNSA_TENSOR_NONE, CPNSA_TENSOR_NONE, \
        CPNSA_TENSOR_NONE, CPNSA_TENSOR_NONE, 0, 0, NULL                                                          \
  }

/* One layer over a sequence sharded by a partition over the ranks of a communicator. */
typedef struct cpnsa_attention_object* cpnsa_attention;

/* The state of a forward that its backward reads. */
typedef struct cpnsa_saved_object* cpnsa_saved;

/* The kernels of one op of a layer on a GPU. Texts are valid until the thread's next call of cpnsa_get_kernels(). */
typedef struct cpnsa_kernel {
  const char* op;     /* e.g. "selected_attention_backward" */
  const char* family; /* "hopper" or "portable" */
  const char* reason; /* why a Hopper GPU runs portable kernels, or what the choice depends on; may be "" */
} cpnsa_kernel;

/* The kernels of each op that has more than one, on a GPU of this compute capability (80, 90); needs no GPU. *count of
 * them, written to kernels[capacity] if that is enough; with kernels NULL only counts. UNSUPPORTED if the layer does
 * not run on GPUs, saying what does, and in a library built without CUDA. */
CPNSA_API cpnsa_status cpnsa_get_kernels(const cpnsa_config* config, int32_t dtype, int32_t capability,
                                         cpnsa_kernel* kernels, size_t capacity, size_t* count);

/* Creating a layer, cpnsa_forward() and cpnsa_backward() are collective: every rank calls them in the same order. An
 * error on one rank is an error on every rank, except for an invalid handle of the communicator or of the layer.
 * Both only enqueue on `stream`, and allocate nothing. */
CPNSA_API cpnsa_status cpnsa_attention_create(const cpnsa_config* config, const cpnsa_options* options,
                                              cpnsa_partition partition, cpnsa_device device,
                                              cpnsa_communicator communicator, cpnsa_attention* attention);

/* This rank's tokens, and the bytes of device memory that the caller provides: a workspace for one forward or one
 * backward, reusable between them, and one `saved` a forward whose backward is to come. Pointers may be NULL. */
CPNSA_API cpnsa_status cpnsa_attention_sizes(cpnsa_attention attention, int64_t* rows, size_t* workspace_bytes,
                                             size_t* saved_bytes);

/* `memory` is saved_bytes of device memory, aligned as a workspace is, the caller's. May be reused when its backward is
 * done. */
CPNSA_API cpnsa_status cpnsa_saved_create(void* memory, cpnsa_saved* saved);
CPNSA_API cpnsa_status cpnsa_saved_destroy(cpnsa_saved saved);

/* out [rows, H, d_v]; selected int32 [rows, G, n] in device memory, or NULL; saved NULL exactly when options.backward
 * is 0; workspace 256-byte aligned, on the CPU 64-byte aligned at least. Tensors are aligned to their elements, on CUDA
 * to 16 bytes. */
CPNSA_API cpnsa_status cpnsa_forward(cpnsa_attention attention, const cpnsa_tensors* inputs, const cpnsa_tensor* out,
                                     int32_t* selected, cpnsa_saved saved, void* workspace, void* stream);

/* Tensors that a forward writes. log_sum_exp: the log-sum-exps of the branches that are given, [rows, H], f64 for f64
 * layers, f32 for others, natural logarithms; -infinity for a row that sees no key. */
typedef struct cpnsa_outputs {
  size_t struct_size;
  cpnsa_tensor out;
  int32_t* selected; /* or NULL */
  cpnsa_branches log_sum_exp;
} cpnsa_outputs;
#define CPNSA_OUTPUTS_INIT \
  { sizeof(cpnsa_outputs), CPNSA_TENSOR_NONE, NULL, CPNSA_BRANCHES_NONE }

/* cpnsa_forward() with all of its outputs. */
CPNSA_API cpnsa_status cpnsa_forward_outputs(cpnsa_attention attention, const cpnsa_tensors* inputs,
                                             const cpnsa_outputs* outputs, cpnsa_saved saved, void* workspace,
                                             void* stream);

/* Gradients of sum(out * dout), the selection held fixed, overwritten. `inputs` and `saved` are the forward's. Those of
 * q, k, v and gate must be given, in options.gradient_dtype; branches whose gradients are the same memory get their
 * sum. Those of parameters have options.parameter_gradient_dtype; one not given is not computed. */
CPNSA_API cpnsa_status cpnsa_backward(cpnsa_attention attention, const cpnsa_tensors* inputs, const cpnsa_tensor* dout,
                                      cpnsa_saved saved, const cpnsa_tensors* gradients, void* workspace, void* stream);

/* Measurements of the last forward and of the backward after it, on this rank. */
typedef struct cpnsa_statistics {
  size_t struct_size;
  int32_t exchange; /* cpnsa_exchange, what was done */
  int32_t reserved;
  int64_t blocks_needed;       /* (block, KV head) pairs selected here and owned elsewhere */
  int64_t blocks_fetched;      /* (block, KV head) pairs received by the forward */
  int64_t workspace_bytes;     /* most memory beyond the caller's tensors that the rank held */
  int64_t bytes_received[16];  /* by kind: cpnsa_traffic_name() */
  int64_t bytes_predicted[16]; /* what the plan said */
  double seconds[32];          /* by stage: cpnsa_stage_name(); 0 unless options.timing */
} cpnsa_statistics;
#define CPNSA_STATISTICS_INIT                            \
  {                                                      \
    sizeof(cpnsa_statistics), 0, 0, 0, 0, 0, {0}, {0}, { \
      0                                                  \
    }                                                    \
  }

/* Waits for the last step. statistics->struct_size says how much may be written. */
CPNSA_API cpnsa_status cpnsa_attention_statistics(cpnsa_attention attention, cpnsa_statistics* statistics);

/* Names of the entries of cpnsa_statistics; NULL for an index that has no meaning in this version. */
CPNSA_API const char* cpnsa_traffic_name(int index);
CPNSA_API const char* cpnsa_stage_name(int index);

/* Waits for the layer's last step. */
CPNSA_API cpnsa_status cpnsa_attention_destroy(cpnsa_attention attention);

#ifdef __cplusplus
}
#endif

#include "cpnsa/cpnsa_decode.h" /* prefill and decoding over paged KV caches */

#endif /* CPNSA_H */
