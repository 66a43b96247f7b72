// wgmma of prim_hopper.cuh for nvcc.  Contracts are stated there.
//
// The instruction names its accumulators one by one, N / 2 of them: SKV_D4 to SKV_D128 are their operand
// numbers, SKV_O4 to SKV_O128 the operands; each list begins with the one before it.
#pragma once

namespace skv {
namespace prim {

SKV_DEVICE void wgmma_fence() { SKV_SM90A("wgmma.fence.sync.aligned;" :: : "memory"); }
SKV_DEVICE void wgmma_commit() { SKV_SM90A("wgmma.commit_group.sync.aligned;" :: : "memory"); }
template <int kPending>
SKV_DEVICE void wgmma_wait() {
  SKV_SM90A("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// clang-format off
#define SKV_D4 "%0, %1, %2, %3"
#define SKV_O4 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define SKV_D8 SKV_D4 ", %4, %5, %6, %7"
#define SKV_O8 SKV_O4, "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define SKV_D16 SKV_D8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define SKV_O16 \
  SKV_O8, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), \
  "+f"(d[15])
#define SKV_D32 SKV_D16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SKV_O32 \
  SKV_O16, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), \
  "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), \
  "+f"(d[31])
#define SKV_D48 SKV_D32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define SKV_O48 \
  SKV_O32, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), \
  "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), \
  "+f"(d[47])
#define SKV_D64 SKV_D48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SKV_O64 \
  SKV_O48, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), \
  "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), \
  "+f"(d[63])
#define SKV_D96 SKV_D64 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define SKV_O96 \
  SKV_O64, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), \
  "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), \
  "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), \
  "+f"(d[87]), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), \
  "+f"(d[95])
#define SKV_D128 SKV_D96 \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SKV_O128 \
  SKV_O96, "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), \
  "+f"(d[103]), "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), \
  "+f"(d[110]), "+f"(d[111]), "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), \
  "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), \
  "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
// clang-format on

// `numbers`: of the operands after the accumulators, in the order in which they are given.
#define SKV_WGMMA(n, count, type, accumulate_number, numbers, ...)                                  \
  SKV_SM90A("{\n.reg .pred p;\nsetp.ne.b32 p, %" accumulate_number                                  \
            ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" SKV_D##count \
            "}, " numbers ";\n}" : SKV_O##count : __VA_ARGS__)
#define SKV_WGMMA_OF_TYPE(T, n, count, accumulate_number, numbers, ...)        \
  if constexpr (std::is_same<T, __nv_bfloat16>::value) {                       \
    SKV_WGMMA(n, count, "bf16", accumulate_number, numbers, __VA_ARGS__);      \
  } else {                                                                     \
    static_assert(std::is_same<T, __half>::value, "wgmma takes fp16 or bf16"); \
    SKV_WGMMA(n, count, "f16", accumulate_number, numbers, __VA_ARGS__);       \
  }

template <class T, int kN, bool kTransposedA = false, bool kTransposedB = false>
SKV_DEVICE void wgmma_m64k16(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate) {
#define SKV_WITH_A_IN_SHARED(n, count, a0, a1, a2, a3, a4)                                         \
  if constexpr (kN == n) {                                                                         \
    SKV_WGMMA_OF_TYPE(T, n, count, a2, "%" a0 ", %" a1 ", p, 1, 1, %" a3 ", %" a4, "l"(a), "l"(b), \
                      "r"(int(accumulate)), "n"(int(kTransposedA)), "n"(int(kTransposedB)))        \
  }
  SKV_WITH_A_IN_SHARED(8, 4, "4", "5", "6", "7", "8")
  SKV_WITH_A_IN_SHARED(16, 8, "8", "9", "10", "11", "12")
  SKV_WITH_A_IN_SHARED(32, 16, "16", "17", "18", "19", "20")
  SKV_WITH_A_IN_SHARED(64, 32, "32", "33", "34", "35", "36")
  SKV_WITH_A_IN_SHARED(96, 48, "48", "49", "50", "51", "52")
  SKV_WITH_A_IN_SHARED(128, 64, "64", "65", "66", "67", "68")
  SKV_WITH_A_IN_SHARED(192, 96, "96", "97", "98", "99", "100")
  SKV_WITH_A_IN_SHARED(256, 128, "128", "129", "130", "131", "132")
#undef SKV_WITH_A_IN_SHARED
}

template <class T, int kN, bool kTransposedB = false>
SKV_DEVICE void wgmma_m64k16(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
#define SKV_WITH_A_IN_REGISTERS(n, count, a0, a1, a2, a3, a4, a5, a6)                                  \
  if constexpr (kN == n) {                                                                             \
    SKV_WGMMA_OF_TYPE(T, n, count, a5, "{%" a0 ", %" a1 ", %" a2 ", %" a3 "}, %" a4 ", p, 1, 1, %" a6, \
                      "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)),        \
                      "n"(int(kTransposedB)))                                                          \
  }
  SKV_WITH_A_IN_REGISTERS(8, 4, "4", "5", "6", "7", "8", "9", "10")
  SKV_WITH_A_IN_REGISTERS(16, 8, "8", "9", "10", "11", "12", "13", "14")
  SKV_WITH_A_IN_REGISTERS(32, 16, "16", "17", "18", "19", "20", "21", "22")
  SKV_WITH_A_IN_REGISTERS(64, 32, "32", "33", "34", "35", "36", "37", "38")
  SKV_WITH_A_IN_REGISTERS(96, 48, "48", "49", "50", "51", "52", "53", "54")
  SKV_WITH_A_IN_REGISTERS(128, 64, "64", "65", "66", "67", "68", "69", "70")
  SKV_WITH_A_IN_REGISTERS(192, 96, "96", "97", "98", "99", "100", "101", "102")
  SKV_WITH_A_IN_REGISTERS(256, 128, "128", "129", "130", "131", "132", "133", "134")
#undef SKV_WITH_A_IN_REGISTERS
}
#undef SKV_WGMMA
#undef SKV_WGMMA_OF_TYPE

}  // namespace prim
}  // namespace skv
