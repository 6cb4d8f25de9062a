// Conversions of the prelude on the device, for comparison with mantissa_numerics. One thread a value.

constexpr int THREADS = 256;

struct Args {
    // [count]: codes in the low bits, or f32.
    const u32* from;
    // [count].
    u32* to;
    u32 count;
    u32 unused;
};

// Decodes a code of T alone and as part of a pack; differing results are given as the complement, which no code has.
template <class T>
__device__ __forceinline__ u32 decoded(u32 code) {
    constexpr int EACH = 4 / sizeof(T);
    T value;
    if constexpr (sizeof(T) == 1) value.bits = u8(code);
    else value.bits = u16(code);
    u32 word = 0;
    for (int i = 0; i < EACH; ++i) word |= code << (i * 8 * int(sizeof(T)));
    Few<T, EACH> few;
    few.raw.bits = word;
    float many[EACH];
    decode(few, many);
    u32 alone = bits_of(to_f32(value));
    for (int i = 0; i < EACH; ++i) {
        if (bits_of(many[i]) != alone) return ~alone;
    }
    return alone;
}

// Encodes a number alone and in a pair, if packs of T are encoded; as above.
template <class T>
__device__ __forceinline__ u32 encoded(u32 bits) {
    u32 alone = from_f32<T>(float_of(bits)).bits;
    if constexpr (sizeof(T) == 2) {
        float both[2] = {float_of(bits), float_of(bits)};
        u32 pair = encode<T>(both).raw.bits;
        if (pair != (alone | alone << 16)) return ~alone;
    }
    return alone;
}

__device__ __forceinline__ u32 index() { return blockIdx.x * THREADS + threadIdx.x; }

extern "C" __global__ void decode_codes(const Args args) {
    launch_dependents();
    wait_for_inputs();
    if (index() < args.count) args.to[index()] = decoded<T>(args.from[index()]);
}

extern "C" __global__ void encode_numbers(const Args args) {
    launch_dependents();
    wait_for_inputs();
    if (index() < args.count) args.to[index()] = encoded<T>(args.from[index()]);
}

extern "C" __global__ void exponentials(const Args args) {
    launch_dependents();
    wait_for_inputs();
    if (index() < args.count) args.to[index()] = bits_of(exponential(float_of(args.from[index()])));
}

extern "C" __global__ void exponentials_below_one(const Args args) {
    launch_dependents();
    wait_for_inputs();
    if (index() < args.count) args.to[index()] = bits_of(exponential_below_one(float_of(args.from[index()])));
}

extern "C" __global__ void silus(const Args args) {
    launch_dependents();
    wait_for_inputs();
    if (index() < args.count) args.to[index()] = bits_of(silu<T>(float_of(args.from[index()])));
}

extern "C" __global__ void silus_in_f32(const Args args) {
    launch_dependents();
    wait_for_inputs();
    if (index() < args.count) args.to[index()] = bits_of(silu<f32>(float_of(args.from[index()])));
}

// Writes where no memory is: the device's context is lost.
extern "C" __global__ void lose_device(const Args args) {
    launch_dependents();
    wait_for_inputs();
    volatile u32* nowhere = args.to + (u64(1) << 44);
    if (index() < args.count) *nowhere = 1;
}
