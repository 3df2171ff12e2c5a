"""Published families of networks, without their weights: coverage, and the chip as plain PyTorch computes it."""

import copy
import re

import pytest
import torch
from commands import REPOSITORY
from torchvision import models
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from worstcase import Crossbar, attacks
from worstcase.task import decisions, right_answers


def small_vit():
    net = models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5)
    torch.nn.init.normal_(net.heads.head.weight)
    return net


def small_swin():
    return models.SwinTransformer(
        [2, 2], 16, [1, 2], [2, 2], [4, 4], num_classes=5, block=models.swin_transformer.SwinTransformerBlockV2,
        downsample_layer=models.swin_transformer.PatchMergingV2,
    )  # fmt: skip


TORCHVISION = {
    "squeezenet": lambda: models.squeezenet1_1(num_classes=5),
    "mnasnet": lambda: models.mnasnet0_5(num_classes=5),
    "mobilenet": lambda: models.mobilenet_v3_small(num_classes=5),
    "googlenet": lambda: models.googlenet(num_classes=5, init_weights=True),
    "vit": small_vit,
    "swin": small_swin,
    "segmentation": lambda: lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=5),
}
TIMM = ("resnetv2_50x1_bit", "nfnet_l0", "levit_128s", "edgenext_xx_small", "tf_efficientnet_cc_b0_4e")
COMPUTED = ("resnetv2_50x1_bit", "nfnet_l0")  # weight standardisation, of which no state dict holds a chip


def outputs_of(net, inputs):
    with torch.no_grad():
        return net.eval()(**inputs) if isinstance(inputs, dict) else net.eval()(inputs)


def check_chip(net, inputs, classes_in, share):
    """Attack a network that is right everywhere, and give the chip to a plain copy of it."""
    outputs = outputs_of(net, inputs)
    logits = outputs if isinstance(outputs, torch.Tensor) else outputs.get("logits", outputs.get("out"))
    labels = logits.argmax(classes_in)
    crossbar = Crossbar(net, 0.1)
    assert crossbar.coverage().share > share
    batch = {**inputs, "labels": labels} if isinstance(inputs, dict) else (inputs, labels)
    found = attacks.FLWC(steps=2)(crossbar, [batch], progress=False)
    assert found.clean_accuracy == 1 and found.accuracy < 1 and crossbar.also_multiplied == []
    plain = copy.deepcopy(net)
    plain.load_state_dict(crossbar.chip(found.perturbation))
    again = right_answers(*decisions(outputs_of(plain, inputs), labels)).double().mean().item()
    assert again == pytest.approx(found.accuracy, abs=0.002)  # of pixels, some tie
    return crossbar


@pytest.mark.parametrize("make", TORCHVISION.values(), ids=TORCHVISION.keys())
@pytest.mark.filterwarnings("ignore")
def test_torchvision(make):
    torch.manual_seed(0)
    size = 32 if make in (small_vit, small_swin) else 64
    check_chip(make(), torch.randn(4, 3, size, size), 1, 0.9)


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.filterwarnings("ignore")
def test_timm(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    size = 224 if "levit" in name else 64
    net, images = timm.create_model(name, num_classes=7), torch.randn(2, 3, size, size)
    if name in COMPUTED:
        with pytest.raises(ValueError, match="no state dict holds the chip: the layer of stem"):
            check_chip(net, images, 1, 0.99)
    else:
        check_chip(net, images, 1, 0.98)


SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
GPT2 = {"vocab_size": 90, "n_embd": 32, "n_layer": 2, "n_head": 2}
TRANSFORMERS = {
    "Bert ForSequenceClassification": {"vocab_size": 90, **SIZE},
    "GPT2 ForSequenceClassification": {**GPT2, "pad_token_id": 0},
    "Llama ForCausalLM": {"vocab_size": 90, **SIZE},
    "ViT ForImageClassification": {"image_size": 32, "patch_size": 8, "num_labels": 5, **SIZE},
}


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.filterwarnings("ignore")
def test_transformers(name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    kind, task = name.split()
    config = getattr(transformers, f"{kind}Config")(**TRANSFORMERS[name])
    net = getattr(transformers, kind + task)(config)
    if "Image" in task:
        check_chip(net, {"pixel_values": torch.randn(8, 3, 32, 32)}, 1, 0.9)
    else:
        crossbar = check_chip(net, {"input_ids": torch.randint(1, 90, (8, 12))}, -1, 0.3)
        tables = {"Bert": "bert.embeddings.word_embeddings.weight", "GPT2": "transformer.wte.weight"}
        assert tables.get(kind, "model.embed_tokens.weight") in crossbar.coverage().digital


@pytest.mark.filterwarnings("ignore")
def test_the_readmes_bert(tmp_path, monkeypatch, short_ensemble):
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = transformers.BertConfig(**TRANSFORMERS["Bert ForSequenceClassification"])
    transformers.BertForSequenceClassification(config).save_pretrained("your-folder")
    words = {"input_ids": torch.randint(1, 90, (8, 12)), "attention_mask": torch.ones(8, 12, dtype=torch.long)}
    readme = (REPOSITORY / "README.md").read_text()
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL) if "bert" in code)
    names = {"batches": [{**words, "labels": torch.randint(0, 2, (8,))}]}
    exec(block, names)
    assert names["result"].attacked_accuracy <= names["result"].clean_accuracy
    assert "bert.encoder.layer.0.attention.self.query.weight" in names["crossbar"].coverage().programmed


@pytest.mark.filterwarnings("ignore")
def test_a_language_models_head_is_told_apart_from_its_table():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    net = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    crossbar, ids = Crossbar(net, 0.1).eval(), torch.randint(0, 90, (8, 12))
    coverage, d = crossbar.coverage(), crossbar.box.sample("vertex")
    assert "lm_head.weight" in coverage.programmed and "transformer.wte.weight" in coverage.digital
    untied = copy.deepcopy(net)
    untied.lm_head.weight = torch.nn.Parameter(net.lm_head.weight.detach().clone())
    with torch.no_grad():
        for name, deviation in d.items():
            untied.get_parameter(name).add_(deviation)
        torch.testing.assert_close(crossbar({"input_ids": ids}, d).logits, untied(ids).logits)
