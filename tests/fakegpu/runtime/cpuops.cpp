// Real arithmetic for the fake GPU: each kernel of torch's that CUDA and the CPU both have is the CPU's, on the same
// memory. What allocates, views, copies or reads a number stays CUDA's, so that the host's way is the real one.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <mutex>
#include <set>
#include <torch/library.h>
#include <unordered_map>

using at::Tensor;
using c10::DispatchKey;
using c10::IValue;
using c10::KernelFunction;

extern "C" void count(int event, size_t bytes); // of fake.h
static const int STREAM_SYNC = 0;

namespace {

std::vector<c10::RegistrationHandleRAII> registered;

// A tensor on the CPU that has the same memory.
Tensor on_cpu(const Tensor &tensor) {
    if (!tensor.defined() || !tensor.is_cuda()) return tensor;
    auto memory = at::DataPtr(tensor.storage().mutable_data(), c10::Device(c10::kCPU));
    auto size = static_cast<int64_t>(tensor.storage().nbytes());
    c10::Storage storage(c10::Storage::use_byte_size_t(), size, std::move(memory), nullptr, false);
    auto view = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(DispatchKey::CPU),
                                                         tensor.dtype());
    view.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides());
    view.unsafeGetTensorImpl()->set_storage_offset(tensor.storage_offset());
    if (tensor.is_conj()) view._set_conj(true);
    return view;
}

Tensor to_device(const Tensor &tensor, c10::Device device) {
    if (!tensor.defined() || tensor.is_cuda()) return tensor;
    auto there = at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(device));
    on_cpu(there).copy_(tensor);
    return there;
}

// The CPU's generator that stands in for one of CUDA's: made anew when that is seeded.
at::Generator cpu_generator(const at::Generator &generator) {
    static std::mutex mutex;
    static std::unordered_map<void *, at::Generator> made;
    std::lock_guard<std::mutex> lock(mutex);
    auto key = static_cast<void *>(generator.unsafeGetGeneratorImpl());
    auto found = made.find(key);
    if (found != made.end() && found->second.current_seed() == generator.current_seed()) return found->second;
    return made.insert_or_assign(key, at::detail::createCPUGenerator(generator.current_seed())).first->second;
}

// Which devices a call's tensors are on.
struct Devices {
    std::optional<c10::Device> cuda;
    std::string argument_on_cpu;

    void see(const Tensor &tensor, const std::string &argument) {
        if (!tensor.defined()) return;
        if (tensor.is_cuda() && !cuda) cuda = tensor.device();
        if (tensor.is_cpu() && tensor.dim() > 0) argument_on_cpu = argument;
    }
};

// The kernel sizes the result itself, where the caller gave an empty tensor to write into.
bool is_empty_output(const c10::Argument &argument, const Tensor &tensor) {
    return argument.alias_info() && argument.alias_info()->isWrite() && tensor.numel() == 0;
}

IValue argument_on_cpu(const IValue &value, const c10::Argument &argument, Devices &devices) {
    if (value.isTensor()) {
        auto tensor = value.toTensor();
        devices.see(tensor, argument.name());
        if (!tensor.defined() || !tensor.is_cuda()) return value;
        if (is_empty_output(argument, tensor)) return at::empty(tensor.sizes(), tensor.options().device(c10::kCPU));
        return on_cpu(tensor);
    }
    if (value.isTensorList()) {
        std::vector<Tensor> tensors;
        for (const auto &tensor : value.toTensorVector()) {
            devices.see(tensor, argument.name());
            tensors.push_back(on_cpu(tensor));
        }
        return tensors;
    }
    if (value.isList() && argument.type()->str().find("Tensor") != std::string::npos) {
        c10::List<std::optional<Tensor>> tensors;
        for (const IValue &element : value.toList()) {
            if (element.isNone()) {
                tensors.push_back(std::nullopt);
                continue;
            }
            devices.see(element.toTensor(), argument.name());
            tensors.push_back(on_cpu(element.toTensor()));
        }
        return tensors;
    }
    if (value.isGenerator() && value.toGenerator().device().is_cuda()) return cpu_generator(value.toGenerator());
    if (value.isDevice() && value.toDevice().is_cuda()) {
        devices.cuda = value.toDevice();
        return c10::Device(c10::kCPU);
    }
    return value;
}

// The argument that a result is, for functions that write into what they are given.
std::optional<size_t> argument_of_result(const c10::FunctionSchema &schema, const c10::Argument &result) {
    if (!result.alias_info() || !result.alias_info()->isWrite()) return std::nullopt;
    for (size_t k = 0; k < schema.arguments().size(); k++) {
        const auto *alias = schema.arguments()[k].alias_info();
        if (alias && alias->isWrite() && alias->beforeSets() == result.alias_info()->beforeSets()) return k;
    }
    return std::nullopt;
}

// What a kernel wrote into a tensor of its own goes to the one that was given.
void hand_over(const IValue &written, const IValue &given) {
    if (!written.isTensor() || !given.isTensor() || !given.toTensor().is_cuda()) return;
    auto tensor = given.toTensor();
    if (!written.toTensor().defined() || written.toTensor().sizes() == tensor.sizes()) return;
    tensor.resize_(written.toTensor().sizes());
    on_cpu(tensor).copy_(written.toTensor());
}

// Whether CUDA's kernel would have the host wait: for a result's shape or value that depends on the numbers.
bool waits(const c10::OperatorHandle &op, const std::vector<IValue> &arguments) {
    if (op.schema().name() == "aten::index") { // by places it doesn't wait, by a mask it does
        for (const IValue &index : arguments[1].toList())
            if (!index.isNone() && (index.toTensor().dtype() == at::kBool || index.toTensor().dtype() == at::kByte))
                return true;
        return false;
    }
    return op.schema().name() == "aten::equal" || op.hasTag(at::Tag::dynamic_output_shape);
}

void compute_on_cpu(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
    static const std::set<std::string> mixes_devices = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"};
    const auto &schema = op.schema();
    const size_t first = stack->size() - schema.arguments().size();
    const std::vector<IValue> given(stack->begin() + first, stack->end());
    Devices devices;
    for (size_t i = 0; i < given.size(); i++)
        (*stack)[first + i] = argument_on_cpu(given[i], schema.arguments()[i], devices);
    TORCH_CHECK(!devices.cuda || devices.argument_on_cpu.empty() || mixes_devices.count(schema.name()),
                "Expected all tensors to be on the same device: argument ", devices.argument_on_cpu, " of ",
                schema.name(), " is on the CPU");
    if (devices.cuda && waits(op, given)) count(STREAM_SYNC, 0);
    op.redispatchBoxed(c10::DispatchKeySet(DispatchKey::CPU), stack);

    const size_t first_result = stack->size() - schema.returns().size();
    for (size_t i = 0; i < schema.returns().size(); i++) {
        IValue &result = (*stack)[first_result + i];
        if (auto k = argument_of_result(schema, schema.returns()[i])) {
            hand_over(result, given[*k]);
            result = given[*k];
        } else if (devices.cuda && result.isTensor()) {
            result = to_device(result.toTensor(), *devices.cuda);
        } else if (devices.cuda && result.isTensorList()) {
            std::vector<Tensor> tensors;
            for (const auto &tensor : result.toTensorVector()) tensors.push_back(to_device(tensor, *devices.cuda));
            result = tensors;
        }
    }
}

// A copy that changes dtype or layout: CUDA's makes a plain one on the device and moves that. One such move is made, so
// that it is counted; the numbers go their own way.
Tensor &copy_(Tensor &self, const Tensor &source, bool non_blocking) {
    const bool is_plain = self.is_contiguous() && source.is_contiguous() && self.dtype() == source.dtype() &&
                          self.sizes() == source.sizes();
    if (is_plain || self.is_meta() || source.is_meta()) return at::native::copy_(self, source, non_blocking);
    if (self.is_cuda() != source.is_cuda()) {
        const auto bytes = source.numel() * static_cast<int64_t>(source.element_size());
        const auto from = at::empty({bytes}, source.options().dtype(at::kByte));
        auto to = at::empty_like(from, from.options().device(self.device()));
        at::native::copy_(to, from, non_blocking);
    }
    on_cpu(self).copy_(on_cpu(source));
    return self;
}

const std::set<std::string> STAYS_CUDAS = {"aten::empty",
                                           "aten::empty_strided",
                                           "aten::as_strided",
                                           "aten::view",
                                           "aten::_reshape_alias",
                                           "aten::set_",
                                           "aten::resize_",
                                           "aten::unfold",
                                           "aten::is_pinned",
                                           "aten::_local_scalar_dense",
                                           "aten::_pin_memory",
                                           "aten::record_stream",
                                           "aten::copy_",
                                           "aten::_to_copy",
                                           "aten::view_as_real",
                                           "aten::view_as_complex",
                                           "aten::is_set_to",
                                           "aten::_fused_sdp_choice",
                                           "aten::_efficientzerotensor",
                                           "aten::_resize_output_"};
// The CPU has these under a key that asking for computed kernels does not find.
const std::set<std::string> LOSS_SCALING = {"aten::_amp_foreach_non_finite_check_and_unscale_",
                                            "aten::_amp_update_scale_"};

bool is_computed_on_cpu(const c10::OperatorName &name) {
    if (name.name.rfind("aten::", 0) != 0 || STAYS_CUDAS.count(name.name)) return false;
    auto op = c10::Dispatcher::singleton().findOp(name);
    if (!op || !op->hasSchema()) return false;
    if (LOSS_SCALING.count(name.name)) return name.overload_name.empty();
    return op->hasKernelForDispatchKey(DispatchKey::CUDA) && op->hasComputedKernelForDispatchKey(DispatchKey::CPU);
}

void replace(const c10::OperatorName &name, KernelFunction kernel) {
    auto &dispatcher = c10::Dispatcher::singleton();
    registered.push_back(dispatcher.registerImpl(name, DispatchKey::CUDA, kernel, std::nullopt, nullptr, "fake GPU"));
}

} // namespace

extern "C" void cpuops_enable() {
    for (const auto &name : c10::Dispatcher::singleton().getAllOpNames())
        if (is_computed_on_cpu(name)) replace(name, KernelFunction::makeFromBoxedFunction<&compute_on_cpu>());
    replace({"aten::copy_", ""}, KernelFunction::makeFromUnboxedRuntimeFunction(&copy_));
}
