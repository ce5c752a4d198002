#!/usr/bin/env python3
"""What `transformers` and `diffusers` make of small networks: the fixtures that the Rust encoders are held to.

  fixtures.py                              writes fixtures/ beside this script
  fixtures.py vocabulary BPE.txt.gz DIR    writes DIR/{vocab.json,merges.txt,tokenizer.json,prompts.json} from OpenAI's merges, as they are
                                           in the package open_clip_torch, to check the tokenizer on the real vocabulary

Weights are not stored: both sides compute them from their names (`numbers` below, and `fixture.rs`). A fixture holds outputs, and names and shapes of the
weights as its library has them. Needs from PyPI: torch, transformers, diffusers, tokenizers, safetensors. Made with the versions that it prints.
"""
import gzip, json, sys, tempfile
from pathlib import Path
import diffusers, numpy, tokenizers, torch, transformers
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, BertTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, Dinov2Config, Dinov2Model

HERE = Path(__file__).parent / "fixtures"
PROMPTS = [
    "", "a photo of a cat", "A Photo OF a CAT!", "it's the dog's ball, they're here & we've won; i'll go, i'd say 'm",
    "crème brûlée at the café", "cre\u0300me bru\u0302le\u0301e", "ein Bär, ÄÖÜß", "😀 a smiling 🐻‍❄️ bear", "一只红色的苹果 on a table", "りんごと猫",
    "two    spaces\tand a tab\nand a line", "   leading and trailing   ", "1234 5,678.90 3D", "snake_case-and-dashes...!!!", "e=mc^2 <b>bold</b> &amp;",
    "\u200bzero width\u00a0no-break", "ﬁ ligature Ⅳ ½", "a " * 100, "supercalifragilisticexpialidocious " * 20, "the <|endoftext|> mark",
]
CORPUS = "a photo of a cat and a dog on the table, a red apple; the bear is here, it's a ball and we are smiling: crème brûlée at the café, spaces and dashes, 1234 bold line tab"


def numbers(name: str, shape) -> torch.Tensor:
    """Numbers that follow from a name: a hash of it and of the place, spread as weights of that shape usually are."""
    seed = 2166136261
    for byte in name.encode():
        seed = ((seed ^ byte) * 16777619) % 2**32
    x = (numpy.arange(numpy.prod(shape), dtype=numpy.uint64) + seed) * 0x9E3779B1 % 2**32
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    uniform = ((x ^ (x >> 16)) >> 8).astype(numpy.float32) / numpy.float32(2**24) - numpy.float32(0.5)
    if len(shape) >= 2:
        fan_in = int(numpy.prod(shape[1:]))
        uniform = uniform * numpy.float32(3.5 / fan_in**0.5)
    elif name.endswith(("weight", "lambda1")):
        uniform = uniform * numpy.float32(0.5) + numpy.float32(1)
    return torch.from_numpy(uniform.reshape(shape))


def fill(model):
    """The model with its numbers, by way of a file as its library writes it; and the names and shapes in that file."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        (path,) = Path(folder).glob("*.safetensors")
        shapes = {name: list(tensor.shape) for name, tensor in load_file(path).items()}
        save_file({name: numbers(name, shape) for name, shape in shapes.items()}, path, metadata={"format": "pt"})
        return type(model).from_pretrained(folder).eval(), shapes


def save(name: str, tensors: dict, shapes: dict):
    tensors = {key: value.detach().float().contiguous() for key, value in tensors.items()}
    save_file(tensors, HERE / f"{name}.safetensors", metadata={"shapes": json.dumps(shapes)})


def byte_letters() -> list:
    """The 256 letters that stand for bytes, in CLIP's order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in plain] + [chr(256 + place) for place in range(256 - len(plain))]


def small_merges(count: int) -> list:
    """The commonest pairs of the corpus, one after the other."""
    words = [[*tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(word)[0][0]] for word in CORPUS.lower().split()]
    words = [word[:-1] + [word[-1] + "</w>"] for word in words]
    merges = []
    for _ in range(count):
        pairs = {}
        for word in words:
            for pair in zip(word, word[1:]):
                pairs[pair] = pairs.get(pair, 0) + 1
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word in words:
            place = 0
            while place < len(word) - 1:
                if (word[place], word[place + 1]) == best:
                    word[place : place + 2] = ["".join(best)]
                place += 1
    return merges


def clip_tokenizer(merges: list, out: Path) -> CLIPTokenizer:
    """Writes vocab.json, merges.txt and tokenizer.json."""
    letters = byte_letters()
    words = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: place for place, word in enumerate(words)}
    assert len(vocabulary) == len(words)
    out.mkdir(parents=True, exist_ok=True)
    (out / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (out / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in merges], model_max_length=77)
    tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))
    return tokenizer


def clip_ids(tokenizer: CLIPTokenizer, prompts: list) -> list:
    return tokenizer(prompts, padding="max_length", truncation=True, max_length=77)["input_ids"]


def clip():
    tokenizer = clip_tokenizer(small_merges(200), HERE / "clip")
    ids = clip_ids(tokenizer, PROMPTS)
    (HERE / "clip" / "prompts.json").write_text(json.dumps({"prompts": PROMPTS, "ids": ids}))
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=77,
        hidden_act="quick_gelu", bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )
    model = CLIPTextModel(config)
    model, shapes = fill(model)
    out = model(torch.tensor(ids[:4]))
    save("clip", {"tokens": out.last_hidden_state, "pooled": out.pooler_output}, shapes)


def minilm():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({*CORPUS.lower().replace("'", " ").replace(",", " ").split()})]
    words += [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), *",.!;:'&"]
    words = [*dict.fromkeys(words)]
    tokenizer = BertTokenizer(vocab={word: place for place, word in enumerate(words)}, do_lower_case=True)
    (HERE / "minilm").mkdir(parents=True, exist_ok=True)
    tokenizer.backend_tokenizer.save(str(HERE / "minilm" / "tokenizer.json"))
    config = BertConfig(
        vocab_size=len(words), hidden_size=96, num_hidden_layers=2, num_attention_heads=12, intermediate_size=192, max_position_embeddings=512,
    )
    model = BertModel(config)
    model, shapes = fill(model)
    batch = tokenizer(PROMPTS[:5] + ["a cat " * 30], padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(2).float()
    pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
    save("minilm", {"tokens": states * mask, "pooled": pooled}, shapes)


def vae():
    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3, block_out_channels=[32, 32, 64], layers_per_block=2, latent_channels=4,
    )
    model, shapes = fill(model)
    pictures, latents = numbers("pictures", (2, 3, 24, 16)) * 4, numbers("latents", (2, 4, 6, 4)) * 4
    moments = model.encode(pictures).latent_dist.parameters
    save("vae", {"moments": moments, "pictures": model.decode(latents).sample}, shapes)


def dino():
    model = Dinov2Model(Dinov2Config(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=518, patch_size=14))
    model, shapes = fill(model)
    pictures = numbers("pictures", (2, 3, 224, 224)) * 4
    small = numbers("small", (2, 3, 32, 32)) * 4
    resize = lambda x, size, mode: torch.nn.functional.interpolate(x, size=size, mode=mode, align_corners=False, antialias=True)
    tensors = {"features": model(pictures).pooler_output, "cubic": resize(small, (48, 20), "bicubic"), "linear": resize(small, (48, 20), "bilinear")}
    save("dino", tensors, shapes)


def vocabulary(bpe: str, out: str):
    lines = gzip.open(bpe).read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    tokenizer = clip_tokenizer([tuple(line.split()) for line in lines], Path(out))
    assert len(tokenizer) == 49408
    (Path(out) / "prompts.json").write_text(json.dumps({"prompts": PROMPTS, "ids": clip_ids(tokenizer, PROMPTS)}))


if __name__ == "__main__":
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, diffusers {diffusers.__version__}, tokenizers {tokenizers.__version__}")
    torch.manual_seed(0)
    with torch.no_grad():
        if sys.argv[1:2] == ["vocabulary"]:
            vocabulary(*sys.argv[2:])
        else:
            clip(), minilm(), vae(), dino()
